"""`python -m tools sweep`: a day's search, by one worker or several, stopped and continued at will."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

from utils import days

from .run import share

SEARCHES = {8: "search", 9: "finetune", 10: "search", 12: "search", 14: "search"}
"""The module of each day's search in its folder."""


def sweep(day: int, profile: str, workers: int = 1, trials: int | None = None) -> int:
    """Work on the day's studies until they are full; 0 when all workers finished.

    Several workers are processes of this machine that share its cores. On a cluster start this command once
    per task instead (containers/slurm/sweep.sbatch): the tasks share one journal. Raises ValueError for a day
    without a search.
    """
    if day not in SEARCHES:
        raise ValueError(f"Day {day} has no search; days that have one: {tuple(SEARCHES)}")
    if workers <= 1:
        module = importlib.import_module(f"{days.get(day).name}.{SEARCHES[day]}")
        module.run_worker(profile, trials)
        return 0
    command = [sys.executable, "-m", "tools", "sweep", "--day", str(day), "--profile", profile]
    command += ["--trials", str(trials)] if trials else []
    env = {**os.environ, "OMP_NUM_THREADS": str(share(workers))}
    crew = [subprocess.Popen(command, env=env, cwd=days.ROOT) for _ in range(workers)]
    try:
        return max(process.wait() for process in crew)
    except KeyboardInterrupt:
        for process in crew:
            process.terminate()
        raise
