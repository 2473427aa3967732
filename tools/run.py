"""`python -m tools run`: execute the days' notebooks and tell how each went."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import nbformat
from tqdm import tqdm

from utils import days
from utils.device import cores
from utils.logger import read_table
from utils.metrics import spread


@dataclass
class Outcome:
    """How one day went: what the closing table shows."""

    day: days.Day
    status: str
    headline: str
    seconds: float
    notebook: Path
    error: str = ""


def run(numbers: list[int] | None, profile: str, resume: bool = False, at_once: int | None = None) -> int:
    """Execute the notebooks of `numbers` (all that exist by default); 0 when all went through.

    A day that fails does not stop the others. quick: into `runs/quick/`. study: the executed
    notebook takes the place of the one in the day folder when it went through. full: `runs/full/`.
    With `resume`, a notebook that was killed continues: finished runs are loaded, not trained again.
    `at_once` notebooks share the cores; by default two in quick and one else, where seconds are published.
    Raises ValueError for a day that is not here, and for `at_once` below 1.
    """
    chosen = [days.get(n) for n in numbers] if numbers else days.existing()
    missing = [d.name for d in chosen if not d.notebook.exists()]
    if missing:
        raise ValueError(f"not in this repository yet: {', '.join(missing)}")
    at_once = usual(profile) if at_once is None else at_once
    if at_once < 1:
        raise ValueError(f"--at-once {at_once}: at least one notebook must run.")
    quiet_jupyter()
    began, outcomes = time.perf_counter(), []
    one = execute_resuming if resume else execute
    with tqdm(total=len(chosen), unit="day", desc=f"{profile} profile") as bar:
        for outcome in execute_all(chosen, profile, at_once, one):
            outcomes.append(outcome)
            bar.set_postfix_str(f"{outcome.day.name} {outcome.status}")
            bar.update()
    outcomes.sort(key=lambda o: o.day.number)
    print(report(outcomes, time.perf_counter() - began))
    return 1 if any(o.status != "ok" for o in outcomes) else 0


def share(processes: int) -> int:
    """Threads for each of so many processes, at least one."""
    return max(1, cores() // processes)


def usual(profile: str) -> int:
    """Notebooks at a time: two in quick where there are two cores, one where seconds are published."""
    return min(2, cores()) if profile == "quick" else 1


def execute_all(
    chosen: list[days.Day], profile: str, at_once: int, one: Callable[[days.Day, str], Outcome]
) -> Iterator[Outcome]:
    """What `one(day, profile)` gives for each day, as it ends: `at_once` processes share the cores evenly.

    A day waits for those that it reads. With one at a time they are executed in this process, in order.
    """
    if min(at_once, len(chosen)) < 2:
        yield from (one(day, profile) for day in chosen)
        return
    pool = processes(at_once)
    waiting, running = list(chosen), {}
    try:
        while waiting or running:
            ahead = {d.number for d in [*waiting, *running.values()]}
            ready = [d for d in waiting if not ahead & set(d.reads)]
            for day in ready[: at_once - len(running)]:
                try:
                    future = pool.submit(one, day, profile)
                except BrokenProcessPool:  # a process has died
                    pool = processes(at_once)
                    future = pool.submit(one, day, profile)
                running[future] = day
                waiting.remove(day)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield outcome_of(future, running.pop(future), profile)
    finally:
        pool.shutdown()


def processes(count: int) -> ProcessPoolExecutor:
    """Fresh processes that execute notebooks, each with its share of the cores."""
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, fresh, settle, (days.ROOT, share(count)))


def settle(root: Path, threads: int) -> None:
    """A process that executes notebooks: this repository, and that many threads for each kernel."""
    days.ROOT = root
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def outcome_of(future: Future[Outcome], day: days.Day, profile: str) -> Outcome:
    """What a process answered; a process that died is a day that failed."""
    if not (error := future.exception()):
        return future.result()
    notebook = days.runs(profile, day.name, f"{day.name}.ipynb")
    return Outcome(day, "FAILED", "none", 0.0, notebook, f"{type(error).__name__}: {error}")


def execute_resuming(day: days.Day, profile: str) -> Outcome:
    """`execute`, but finished runs keep their state until the notebook is through: a second call has less to do.

    States that other code left (of the day, or of the modules that it imports) are deleted first.
    """
    folder = days.runs(profile, day.name)
    mark, version = folder / "resume.txt", days.code_version(day.folder)
    if not mark.exists() or mark.read_text(encoding="utf-8") != version:
        forget(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(version, encoding="utf-8")
    os.environ["STUDY_RESUME"] = "1"
    try:
        outcome = execute(day, profile)
    finally:
        del os.environ["STUDY_RESUME"]
    if outcome.status == "ok":
        forget(folder)
        mark.unlink()
    return outcome


def forget(folder: Path) -> None:
    """Delete the states of runs under this folder."""
    for checkpoint in folder.glob("*/checkpoint.pt"):
        checkpoint.unlink()


def quiet_jupyter() -> None:
    """Kernels of this environment, and their side files under `runs/` (a home may be read-only)."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for name, folder in (("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "jupyter")):
        path = days.runs(".jupyter", folder)
        path.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(name, str(path.resolve()))


def run_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, str] | None = None, folder: Path | None = None
) -> nbformat.NotebookNode:
    """Execute a notebook in its own folder (or `folder`) into another file; what was written there, tidied.

    Raises PapermillExecutionError when a cell fails.
    """
    import papermill

    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters=parameters,
        cwd=str(folder or notebook.parent),
        kernel_name="python3",
        progress_bar=False,
        coalesce_streams=True,  # one output a stream, overwritten progress bars resolved
        extra_arguments=["--log-level=ERROR"],
    )
    executed = tidy(nbformat.read(output, as_version=4))
    nbformat.write(executed, output)
    return executed


def execute(day: days.Day, profile: str) -> Outcome:
    """Execute one notebook in a kernel of its own, in its folder, with this profile."""
    from papermill.exceptions import PapermillExecutionError

    output = days.runs(profile, day.name, f"{day.name}.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    began, status, error = time.perf_counter(), "ok", ""
    try:
        parameters = {} if profile == "study" else {"PROFILE": profile}
        notebook = run_notebook(day.notebook, output, parameters)
        if profile == "study":
            with days.atomic(day.notebook) as scratch:
                nbformat.write(notebook, scratch)
            output = day.notebook
    except PapermillExecutionError as e:
        status, error = "FAILED", f"cell {e.exec_count}: {e.ename}: {e.evalue}"
    except Exception as e:  # a broken notebook or kernel must not hide the other days
        status, error = "FAILED", f"{type(e).__name__}: {e}"
    seconds = time.perf_counter() - began
    return Outcome(day, status, headline(day, profile), seconds, output, error)


def headline(day: days.Day, profile: str) -> str:
    """The day's headline metric with its spread over seeds, from the rows of this profile."""
    rows = read_table(day.table(profile))
    if rows and "profile" not in rows[0]:  # Day 15: a table of the others
        heads = [r for r in rows if r["role"] == "headline"]
        return f"{len({r['day'] for r in heads})} projects in one table"
    rows = [r for r in rows if r["profile"] == profile and r["role"] == "headline"]
    values = [float(r[day.metric]) for r in rows if r.get(day.metric)]
    if not rows:
        return "none"
    if not values:  # an optional package is missing: the notebook says which
        return f"{day.metric} not measured"
    return f"{day.metric} {spread(values):.4f} on {rows[-1]['dataset']}"


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without the runner's metadata and without what is left of progress bars that were erased."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", *([] if cell.metadata.get("tags") else ["tags"])):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            for out in cell.outputs:
                if out.output_type == "stream":
                    out.text = re.sub(r"^[ \r]+$|\r$", "", out.text, flags=re.M).lstrip("\n")
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
    return notebook


def report(outcomes: list[Outcome], seconds: float) -> str:
    """The closing table: day, status, headline metric, seconds, where the executed notebook lies.

    `seconds` is what all took together: less than the sum where several ran at once.
    """
    head = ("day", "status", "headline metric", "seconds", "notebook")
    seen = ((o, os.path.relpath(o.notebook)) for o in outcomes)
    rows = [head, *((o.day.name, o.status, o.headline, f"{o.seconds:.1f}", path) for o, path in seen)]
    width = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, width, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in width))
    failed = [o for o in outcomes if o.status != "ok"]
    lines.append(f"{len(outcomes) - len(failed)} of {len(outcomes)} days ok in {seconds:.0f} s")
    for o in failed:
        lines.append(f"\n{o.day.name} failed in {o.error}\n  see the end of {o.notebook}")
    return "\n" + "\n".join(lines)
