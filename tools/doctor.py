"""`python -m tools doctor`: one line per check, OK or FAIL, and with each FAIL the mend.

Imports only the standard library at the top, so that it can speak where the installation failed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import days

PIP = ".venv/bin/python -m pip install -r requirements.txt -c constraints.txt"


@dataclass
class Check:
    """One line: `state` is OK, FAIL or note (worth knowing, nothing to mend)."""

    state: str
    what: str
    mend: str = ""


def doctor() -> int:
    """Print all checks; 0 when none fails."""
    failed = 0
    for family in (python, packages, device, training, disk, notebooks, data_sets):
        for check in guarded(family):
            failed += check.state == "FAIL"
            print(f"{check.state:<5}{check.what}")
            if check.mend:
                print(f"       -> {check.mend}")
    print("\nAll is well: `make run` is next." if not failed else f"\n{failed} to mend.")
    return 1 if failed else 0


def guarded(family: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a family; an exception in it is a FAIL of its own, not the end of the visit."""
    try:
        yield from family()
    except Exception as e:
        yield Check(
            "FAIL", f"{family.__name__}: {type(e).__name__}: {e}", "mend the lines above first"
        )


def python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11, 5)  # soupsieve asks for it
    yield Check(
        "OK" if ok else "FAIL",
        f"Python {version}",
        "" if ok else "install Python 3.11.5 or newer, then: make run PYTHON=python3.11",
    )
    if sys.prefix == sys.base_prefix and not os.environ.get("APPTAINER_CONTAINER"):
        yield Check(
            "note",
            "no virtual environment is active",
            "`make lab` and `make run` use .venv themselves",
        )
    else:
        yield Check("OK", "an environment of its own")


def packages() -> Iterator[Check]:
    """Every line of requirements.txt: installed, and in the range that is asked for."""
    from packaging.requirements import Requirement

    bad = []
    count = 0
    for line in (days.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        count += 1
        wanted = Requirement(line)
        try:
            have = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            bad.append(f"{wanted.name} {have} is outside {wanted.specifier}")
    for problem in bad:
        yield Check("FAIL", problem, PIP)
    if not bad:
        yield Check("OK", f"{count} packages in the ranges of requirements.txt")
    torch, audio = (
        re.match(r"\d+\.\d+", importlib.metadata.version(p)) for p in ("torch", "torchaudio")
    )
    same = torch and audio and torch.group() == audio.group()
    yield Check(
        "OK" if same else "FAIL", "torch and torchaudio of one release", "" if same else PIP
    )


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
    if chosen.type != "cpu":
        return
    if shutil.which("nvidia-smi"):
        built = torch.version.cuda or "none"
        yield Check(
            "FAIL",
            f"nvidia-smi is here, but torch (built for CUDA {built}) sees no GPU",
            "update the driver, or in a container start it with --nv (Apptainer) or --gpus all (Docker)",
        )
    else:
        yield Check("note", "no GPU: quick and study are made for this, full wants one")


def training() -> Iterator[Check]:
    """A real step: a small network must learn, in seconds."""
    import torch

    from utils.data import Batches, Split
    from utils.device import pick_device, seed_everything
    from utils.training import fit

    seed_everything(0)
    x = torch.randn(512, 8)
    part = Split(x, (x[:, 0] > 0).long()).to(pick_device())
    model = torch.nn.Linear(8, 2).to(part.y.device)
    began = time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    history = fit(model, Batches(part, 64), optimizer, epochs=3, bar=False)
    ok = history.epochs[-1]["train_loss"] < 0.5 * history.steps["loss"][0]
    yield Check(
        "OK" if ok else "FAIL",
        f"a training loop: loss {history.steps['loss'][0]:.2f} to "
        f"{history.epochs[-1]['train_loss']:.2f} in {time.perf_counter() - began:.1f} s",
        "" if ok else "the device computes wrongly: STUDY_DEVICE=cpu make doctor",
    )


def disk() -> Iterator[Check]:
    """Places that are written, and room in them."""
    for name, folder in (("runs/", days.runs()), ("the repository", days.ROOT)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            yield Check("OK", f"{name} can be written")
        except OSError as e:
            mend = "copy the repository to a folder of yours, or STUDY_RUNS=/path for runs/"
            yield Check("FAIL", f"{name} cannot be written ({e.strerror})", mend)
    free = shutil.disk_usage(days.ROOT).free / 1e9
    yield Check(
        "OK" if free > 2 else "FAIL",
        f"{free:,.0f} GB free",
        "" if free > 2 else "2 GB are wanted: make room, or STUDY_DATA=/path on another disk",
    )


def notebooks() -> Iterator[Check]:
    """Jupyter's kernel of this environment, and the days."""
    from jupyter_client.kernelspec import KernelSpecManager

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    spec = Path(KernelSpecManager().get_kernel_spec("python3").resource_dir)
    own = spec.is_relative_to(sys.prefix)
    yield Check(
        "OK" if own else "note",
        "Jupyter's kernel python3 is this environment's"
        if own
        else f"kernel python3 lies in {spec}",
        "" if own else "in JupyterLab choose the kernel of this environment",
    )
    there = days.existing()
    yield Check(
        "OK" if there else "FAIL",
        f"{len(there)} of {len(days.ALL)} days are here",
        "" if there else "clone the repository again",
    )


def data_sets() -> Iterator[Check]:
    """Real data: not needed for quick, so its absence is a note."""
    from utils import data
    from utils.sources import catalogue

    for name, source in catalogue.SOURCES.items():
        numbers = days.using(name)
        which = ", ".join(map(str, numbers))
        if not data.is_here(name):
            mend = f"for the study profile: make fetch DAY={numbers[0]}"
            yield Check("note", f"{name} (days {which}) is not here", mend)
            continue
        found = data.identify(name)
        known = "-other-" not in found
        folder = source.expected_path or source.folder
        folder = folder or next(iter(source.checksums)).rsplit("/", 1)[0]
        mend = f"delete {folder} in the data folder, then: make fetch DAY={numbers[0]}"
        yield Check(
            "OK" if known else "FAIL", f"{name} (days {which}) is {found}", "" if known else mend
        )
