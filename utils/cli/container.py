"""`python -m utils container`: build the image with the engine that is here. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ..days import ROOT

ENGINES = ("docker", "podman", "buildah", "apptainer", "singularity")
IMAGE_GB = {"apptainer": 3.5, "singularity": 3.5}
"""Size of the image as measured: 3.5 GB as one compressed file, 7.1 GB as layers."""
SCRATCH_GB = 20
"""What a build may fill besides: the layers, or the temporary root, and what is downloaded."""


def find_engine(wish: str = "") -> str:
    """The engine of this name, or the first one on the PATH. Raises RuntimeError when there is none."""
    if wish and wish not in ENGINES:
        raise ValueError(f"ENGINE={wish} is unknown: write one of {', '.join(ENGINES)}")
    found = [e for e in ([wish] if wish else ENGINES) if shutil.which(e)]
    if not found:
        raise RuntimeError(
            f"{wish or 'No container engine'} is not installed here. On a cluster try `module load "
            "apptainer`; at home install Docker or Podman; containers/README.md says more."
        )
    return found[0]


def scratch_folder(engine: str) -> Path:
    """Where the engine puts its temporary files: what fills up first."""
    names = {
        "apptainer": "APPTAINER_TMPDIR",
        "singularity": "SINGULARITY_TMPDIR",
    }
    return Path(os.environ.get(names.get(engine, "TMPDIR")) or "/tmp")


def build_command(engine: str, base: str, output: str, extra: list[str]) -> list[str]:
    """The build as one command line, to be run in the repository's root."""
    if engine in ("apptainer", "singularity"):
        if base:
            raise ValueError(
                "Apptainer takes the base from containers/study.def: change its `From:` line."
            )
        return [engine, "build", *extra, output or "study.sif", "containers/study.def"]
    command = [engine, "bud" if engine == "buildah" else "build"]
    if engine != "docker":  # the OCI format has no health check
        command += ["--format", "docker"]
    if base:
        command += ["--build-arg", f"BASE={base}"]
    command += ["-f", "containers/Dockerfile", "-t", output or "study:latest"]
    return [*command, *extra, "."]


def container(engine: str, base: str, output: str, extra: list[str]) -> int:
    """Say what will be filled, build, and return the engine's exit status."""
    engine = find_engine(engine)
    folder = scratch_folder(engine)
    free = shutil.disk_usage(folder).free / 1e9
    command = build_command(engine, base, output, extra)
    print(
        f"The image takes about {IMAGE_GB.get(engine, 7.1)} GB (most of it torch with CUDA); while it is built, "
        f"up to {SCRATCH_GB} GB in {folder} and the engine's store. {free:,.0f} GB are free in {folder}."
    )
    if free < SCRATCH_GB:
        raise RuntimeError(
            f"{free:.0f} GB are not enough. Move the temporary files and the cache to a large disk first: "
            "export TMPDIR=/scratch/$USER APPTAINER_TMPDIR=/scratch/$USER APPTAINER_CACHEDIR=/scratch/$USER"
        )
    print(" ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode
