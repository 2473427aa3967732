"""`python -m tools fetch`: the network part of a day, for the login node of a cluster too."""

from __future__ import annotations

from utils import days, sources
from utils.sources import catalogue


def fetch(names: list[str], day: int | None = None) -> int:
    """Fetch the named sets and those of `day`; with neither, list what there is and what is here."""
    wanted = [*names, *(days.get(day).sets if day else ())]
    if not wanted and day:
        print(f"Day {day} makes its own data: nothing to fetch.")
    elif not wanted:
        for name, source in catalogue.SOURCES.items():
            size = sum(f.size for f in source.files) / 1e6
            state = sources.identify(name) if sources.is_here(name) else "not here"
            print(f"{name}: {size:,.0f} MB, days {days.using(name)}, {source.licence}: {state}")
    for name in dict.fromkeys(wanted):
        sources.fetch(name)
        print(f"{name}: {sources.identify(name)} in {sources.data_root() / catalogue.source(name).folder}")
    return 0
