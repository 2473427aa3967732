"""`python -m tools doctor`: one line per check, OK or FAIL, and with each FAIL how to fix it.

Imports only the standard library at the top, so that it also works where the installation failed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import days

PIP = ".venv/bin/python -m pip install -r requirements.txt -c constraints.txt"


@dataclass
class Check:
    """One line: `state` is OK, FAIL or note (worth knowing, nothing to fix)."""

    state: str
    what: str
    fix: str = ""


def check(ok: bool, what: str, fix: str, otherwise: str = "FAIL") -> Check:
    return Check("OK", what) if ok else Check(otherwise, what, fix)


def doctor() -> int:
    """Print all checks; 0 when none fails."""
    failed = 0
    for family in (python, packages, device, training, places, data_sets):
        for found in guarded(family):
            failed += found.state == "FAIL"
            print(f"{found.state:<5}{found.what}")
            if found.fix:
                print(f"       -> {found.fix}")
    print("\nAll is well: `make run` is next." if not failed else f"\n{failed} to fix.")
    return 1 if failed else 0


def guarded(family: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a family; an exception in it is a FAIL of its own and does not stop the others."""
    try:
        yield from family()
    except Exception as e:
        what = f"{family.__name__}: {type(e).__name__}: {e}"
        yield Check("FAIL", what, "fix the lines above first")


def python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11, 5) <= sys.version_info < (3, 14)
    fix = "install Python 3.11 (3.11.5 or newer), 3.12 or 3.13, then: make run PYTHON=python3.12"
    yield check(ok, f"Python {version}", fix)
    own = sys.prefix != sys.base_prefix or bool(os.environ.get("APPTAINER_CONTAINER"))
    fix = "`make run` and `make lab` use .venv themselves; else: . .venv/bin/activate"
    yield check(own, "an environment of its own" if own else "no virtual environment", fix, "note")


def packages() -> Iterator[Check]:
    """Every line of requirements.txt is installed, in its range."""
    from packaging.requirements import Requirement

    lines = (days.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for x in lines if (line := x.split("#")[0].strip())]
    wanted = [line for line in wanted if not line.marker or line.marker.evaluate()]
    bad = []
    for line in wanted:
        try:
            have = importlib.metadata.version(line.name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(f"{line.name} is not installed")
            continue
        if not line.specifier.contains(have, prereleases=True):
            bad.append(f"{line.name} {have} is outside {line.specifier}")
    yield from (Check("FAIL", problem, PIP) for problem in bad)
    if not bad:
        yield Check("OK", f"{len(wanted)} packages in the ranges of requirements.txt")


def device() -> Iterator[Check]:
    """Which device computes, and why a GPU that may be there is not seen."""
    import torch

    from utils.device import describe_machine, pick_device

    try:
        chosen = pick_device()
    except RuntimeError as e:
        yield Check("FAIL", str(e), "unset STUDY_DEVICE")
        return
    yield Check("OK", describe_machine(chosen))
    if chosen.type == "cpu" and shutil.which("nvidia-smi"):
        built = torch.version.cuda or "none"
        fix = "update the driver; in a container use --nv (Apptainer) or --gpus all (Docker)"
        yield Check("FAIL", f"nvidia-smi is here, but torch (CUDA {built}) sees no GPU", fix)
    elif chosen.type == "cpu":
        yield Check("note", "no GPU: quick and study are made for this, full needs one")


def training() -> Iterator[Check]:
    """A small network must learn on this device, in seconds."""
    import torch

    from utils.device import pick_device, seed_everything

    seed_everything(0)
    x = torch.randn(512, 8, device=pick_device())
    y = (x[:, 0] > 0).float()
    model = torch.nn.Linear(8, 1).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(50):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    what = f"a training loop: loss {losses[0]:.2f} to {losses[-1]:.2f}"
    ok = losses[-1] < 0.5 * losses[0]
    yield check(ok, what, "this device computes wrong results: STUDY_DEVICE=cpu make doctor")


def places() -> Iterator[Check]:
    """Folders that are written, room on the disk, and the notebooks' kernel."""
    for name, folder in (("runs/", days.runs()), ("the repository", days.ROOT)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                yield Check("OK", f"{name} can be written")
        except OSError as e:
            fix = "copy the repository to a folder of yours, or STUDY_RUNS=/path for runs/"
            yield Check("FAIL", f"{name} cannot be written ({e.strerror})", fix)
    free = shutil.disk_usage(days.ROOT).free / 1e9
    fix = "2 GB are needed: make room, or STUDY_DATA=/path on another disk"
    yield check(free > 2, f"{free:,.0f} GB free", fix)
    from jupyter_client.kernelspec import KernelSpecManager

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    spec = Path(KernelSpecManager().get_kernel_spec("python3").resource_dir)
    fix = "in JupyterLab choose the kernel of this environment"
    where = "this environment's" if (ours := spec.is_relative_to(sys.prefix)) else f"in {spec}"
    yield check(ours, f"Jupyter's kernel python3 is {where}", fix, "note")


def data_sets() -> Iterator[Check]:
    """Real data. The quick profile needs none, so a set that is not here is a note."""
    from utils import sources
    from utils.sources import catalogue

    for name in catalogue.SOURCES:
        numbers = days.using(name)
        what = f"{name} (days {', '.join(map(str, numbers))})"
        fetch = f"make fetch DAY={numbers[0]}"
        if not sources.is_here(name):
            yield Check("note", f"{what} is not here", f"for the study profile: {fetch}")
        elif "-other-" in (found := sources.identify(name)):
            fix = f"your rows will name it so; for the original move it away, then: {fetch}"
            yield Check("note", f"{what} is {found}, a copy that is not known here", fix)
        else:
            yield Check("OK", f"{what} is {found}")
