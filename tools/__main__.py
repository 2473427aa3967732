"""The commands behind `make`: each is imported when it is called, since `doctor` must work without torch."""

from __future__ import annotations

import argparse
import importlib
import sys

from utils.days import PROFILES

from .ask import KINDS


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    command = p.add_subparsers(dest="command", required=True).add_parser

    run = command("run", help="execute the notebooks of some or all days")
    run.add_argument("--profile", choices=PROFILES, default="quick")
    run.add_argument("--resume", action="store_true", help="after a kill: skip finished runs")
    run.add_argument("--at-once", type=int, metavar="N", help="notebooks at a time: 2 in quick, else 1")

    inside = command("inside", help="time and memory of days in a container, for `make container-days`")
    for one in (run, inside):
        one.add_argument("--days", dest="numbers", type=int, nargs="+", metavar="N", help="by default all")
    inside.add_argument("--engine", required=True, help="its name and version, e.g. 'apptainer 1.4.5'")

    fetch = command("fetch", help="get data sets: resumes, verifies, unpacks safely")
    fetch.add_argument("names", nargs="*", metavar="SET", help="names of data sets, e.g. mnist")
    fetch.add_argument("--day", type=int, metavar="N", help="those that this day needs")

    command("doctor", help="is everything here? OK or FAIL, with the fix")

    summary = command("summary", help="put the figures of the CSVs into README and notes")
    summary.add_argument("--check", action="store_true", help="change nothing, fail on a difference")

    new = command("new", help="a project of your own from one of Day 15's templates")
    new.add_argument("name", help="e.g. day3_speech_commands")
    new.add_argument("to", help="a folder that is new or empty")
    new.add_argument("--run", action="store_true", help="and execute it there, in the quick profile")

    ask = command("ask", help="a finished model answers about your recording")
    ask.add_argument("kind", choices=KINDS, help="; ".join(f"{k}: {v[2]}" for k, v in KINDS.items()))
    ask.add_argument("files", nargs="+", metavar="FILE")

    checkin = command("checkin", help="what a day's folder still lacks, and the git commands")
    practice = command("practice", help="a copy of a day's notebook in which you write the core cells")
    for one in (checkin, practice):
        one.add_argument("number", type=int, metavar="N")

    sweep = command("sweep", help="a day's search; stop it, start it again")
    sweep.add_argument("--day", type=int, required=True, metavar="N")
    sweep.add_argument("--profile", choices=PROFILES, default="study")
    sweep.add_argument("--workers", type=int, default=1, help="processes of this machine")
    sweep.add_argument("--trials", type=int, help="per study; by default the day's own")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status tells how it went."""
    arguments = vars(parser().parse_args(argv))
    name = arguments.pop("command")
    try:
        return getattr(importlib.import_module(f"tools.{name}"), name)(**arguments)
    except (ValueError, RuntimeError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Finished work is kept; the same command continues.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
