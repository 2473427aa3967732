"""`python -m utils sweep`: a day's search, by one worker or several, stopped and continued at will."""

from __future__ import annotations

import os
import subprocess
import sys

from ..sweeps import sweep_of
from .run import share


def sweep(day: int, profile: str, workers: int, trials: int | None) -> int:
    """Work on the day's studies until they are full; 0 when all workers went through.

    More than one worker are processes of this machine, each with its share of the cores. On a cluster
    start this command once per task instead (containers/slurm/sweep.sbatch): they join by themselves.
    """
    module = sweep_of(day)
    if workers <= 1:
        module.work(profile, trials)
        return 0
    command = [sys.executable, "-m", "utils", "sweep", "--day", str(day)]
    command += ["--profile", profile]
    if trials:
        command += ["--trials", str(trials)]
    env = {**os.environ, "OMP_NUM_THREADS": str(share(workers))}
    crew = [subprocess.Popen(command, env=env) for _ in range(workers)]
    try:
        return max(process.wait() for process in crew)
    except KeyboardInterrupt:
        for process in crew:
            process.terminate()
        raise
