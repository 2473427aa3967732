"""TensorBoard as a person and as a program see it: served, read over HTTP, captured by a browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip


class DashboardError(RuntimeError):
    """TensorBoard or the browser did not do its part; the message says what to do."""


@contextlib.contextmanager
def serve(logdir: Path, timeout: float = 90.0) -> Iterator[str]:
    """TensorBoard on `logdir`, on a free port of this machine only; yields its address.

    Ends with the block. Raises DashboardError when it has not loaded a run within `timeout` seconds.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    shown = os.path.relpath(logdir)  # the page prints it: not this machine's folders
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", shown]
    command += ["--port", str(port), "--host", "127.0.0.1", "--load_fast=false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline, before = time.monotonic() + timeout, None
        wanted = len({p.parent for p in Path(logdir).rglob("events.out.tfevents.*")})
        while True:
            with contextlib.suppress(OSError):  # it does not answer yet
                if wanted and len(ask(url, "/data/runs")) >= wanted:
                    tags = ask(url, "/data/plugin/scalars/tags")
                    if tags and tags == before:  # listed is not yet read
                        break
                    before = tags
                    time.sleep(0.7)
            if process.poll() is not None or time.monotonic() > deadline:
                raise DashboardError(
                    f"TensorBoard showed fewer than the {wanted} runs under {logdir} within "
                    f"{timeout:.0f} s. Run `tensorboard --logdir {logdir}` to see its messages."
                )
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def ask(url: str, path: str, **query: str) -> list | dict:
    """The JSON answer of TensorBoard's HTTP interface."""
    whole = f"{url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, no proxy
    with opener.open(whole, timeout=30) as answer:
        return json.load(answer)


def scalars(url: str, run: str, tag: str) -> list[tuple[int, float]]:
    """`(step, value)` of one curve, as the scalars page gets it."""
    points = ask(url, "/data/plugin/scalars/scalars", run=run, tag=tag)
    return [(int(step), float(value)) for _, step, value in points]


def browser() -> str | None:
    """A Chromium or Chrome on this machine; `$STUDY_BROWSER` names another one."""
    names = [os.environ.get("STUDY_BROWSER", ""), *BROWSERS]
    return next(filter(None, map(shutil.which, names)), None)


def capture(url: str, page: str, png: Path, size: tuple[int, int] = (1500, 1000)) -> Path:
    """Open `url/#page` in a headless browser, wait until it is drawn, and keep it as `png`.

    `page` is TensorBoard's own address after the `#`, e.g. `scalars` or `hparams`. Raises
    DashboardError when there is no browser or it made no picture.
    """
    found = browser()
    if not found:
        raise DashboardError(
            "No Chromium or Chrome was found, so the page was not captured. Install one (Debian: "
            "apt-get install chromium), or name it with STUDY_BROWSER=/path."
        )
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "page.png"
        command = [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", f"--user-data-dir={scratch}/profile",
            f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=20000",
            f"--screenshot={shot}", f"{url}/#{page}",
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=False)
        if not shot.exists() or shot.stat().st_size < 10_000:
            raise DashboardError(f"The browser made no picture of {page}: {' '.join(command)}")
        png.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot, png)
    return png
