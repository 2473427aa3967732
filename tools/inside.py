"""`python -m tools inside`: what each day takes in a container, in the quick profile (`make container-days`).

It measures from within, so that all engines are measured alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from utils import days
from utils.device import device_name
from utils.logger import code_commit, update_table

TABLE = "docs/container_days.csv"


def inside(numbers: list[int] | None, engine: str) -> int:
    """Execute each day in a process of its own and renew its row of TABLE; 1 when one failed (no row).

    `seconds` is wall time. `peak_mb` is the most memory that one process of the day occupied, in MB: that of the
    notebook's kernel.
    """
    failed = 0
    for day in [days.get(n) for n in numbers] if numbers else days.existing():
        command = [sys.executable, "-m", "tools", "run", "--days", str(day.number), "--at-once", "1"]
        began = time.perf_counter()
        _, status, used = os.wait4(subprocess.Popen(command, cwd=days.ROOT).pid, 0)
        row = {
            "run": day.name, "seconds": round(time.perf_counter() - began, 1),
            "peak_mb": round(used.ru_maxrss * 1024 / 1e6), "engine": engine,
            "machine": device_name(), "threads": torch.get_num_threads(),
            "commit": code_commit(day.folder),
        }  # fmt: skip
        update_table(days.ROOT / TABLE, [] if status else [row], row, day.name)
        failed += status != 0
    return 1 if failed else 0
