"""TensorBoard as a person and as a program see it: served, read over HTTP, captured by a browser."""

from __future__ import annotations

import base64
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

from websocket import WebSocketException, create_connection

MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", MAC)
DEEP = """window.deep = (wanted, root = document) => { for (const e of root.querySelectorAll("*")) {
  const found = wanted(e) ? e : e.shadowRoot && deep(wanted, e.shadowRoot); if (found) return found } };
const open = name => deep(e => e.matches(`.meta[data-name^="${name}"] > .nodeshape`))
  .dispatchEvent(new MouseEvent("dblclick"));
const click = (tag, text) => deep(e => e.matches(tag) && e.textContent.trim() == text).click();"""
CLICKS = {
    "scalars": ["localStorage.setItem('_ignoreYOutliers', 'false'); location.reload()"],
    "graphs": ["open('SmallCNN')", "open('SmallCNN/Sequential')", "click('span', 'Fit to screen')"],
    "hparams": ["click('paper-tab', 'PARALLEL COORDINATES VIEW')"],
}
"""What is done on a page before its picture: show all values, open the network, draw parallel coordinates."""


class DashboardError(RuntimeError):
    """TensorBoard or the browser did not do its part; the message says what to do."""


@contextlib.contextmanager
def serve(logdir: Path, timeout: float = 90.0) -> Iterator[str]:
    """TensorBoard on `logdir`, on a free port of this machine only; yields its address.

    Ends with the block. Raises DashboardError when it has not loaded a run within `timeout` seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    shown = os.path.relpath(logdir)  # the page prints it: not this machine's folders
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", shown]
    command += ["--port", str(port), "--host", "127.0.0.1", "--load_fast=false", "--reload_interval=1"]
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
                what = f"TensorBoard showed fewer than {wanted} runs within {timeout:.0f} s. Run "
                raise DashboardError(what + f"`tensorboard --logdir {logdir}` to see its messages.")
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def ask(url: str, path: str, **query: str) -> list | dict:
    """The JSON answer of TensorBoard's HTTP interface."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, no proxy
    with opener.open(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def scalars(url: str, run: str, tag: str) -> list[tuple[int, float]]:
    """`(step, value)` of one curve, as the scalars page gets it."""
    points = ask(url, "/data/plugin/scalars/scalars", run=run, tag=tag)
    return [(int(step), float(value)) for _, step, value in points]


def browser() -> str | None:
    """A Chromium or Chrome on this machine; `$STUDY_BROWSER` names another one."""
    names = [os.environ.get("STUDY_BROWSER", ""), *BROWSERS]
    return next(filter(None, map(shutil.which, names)), None)


def capture(url: str, page: str, png: Path, size: tuple[int, int] = (1400, 800)) -> Path:
    """Open `url/#page` in a headless browser, wait until it is drawn, do its CLICKS, and keep it as `png`.

    `page` is TensorBoard's own address after the `#`, e.g. `scalars` or `hparams`. Raises
    DashboardError when there is no browser or it made no picture.
    """
    if not (found := browser()):
        raise DashboardError(
            "No Chromium or Chrome is here, so the page was not captured. Install one (Debian: apt-get "
            "install chromium), or name it with STUDY_BROWSER=/path."
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        flags = "headless no-sandbox disable-gpu hide-scrollbars no-first-run disable-background-networking"
        command = [found, *(f"--{flag}" for flag in flags.split()), "--disable-sync"]
        command += [f"--user-data-dir={scratch}", "--remote-debugging-port=0", f"{url}/#{page}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            png.write_bytes(_drive(Path(scratch), size, CLICKS.get(page.split("&")[0], [])))
        except (OSError, WebSocketException, LookupError) as e:
            raise DashboardError(f"The browser made no picture of {page}: {e!r}") from e
        finally:
            process.terminate()
            process.wait(20)
    return png


def _drive(profile: Path, size: tuple[int, int], scripts: list[str], pause: float = 4.0) -> bytes:
    """Run JavaScript in the page of a browser with this profile folder; the page as PNG afterwards."""
    deadline, file = time.monotonic() + 60, profile / "DevToolsActivePort"
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(pause)  # the page loads its data and draws
    pages = ask(f"http://127.0.0.1:{file.read_text().split()[0]}", "/json/list")
    address = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
    with contextlib.closing(create_connection(address, timeout=60, suppress_origin=True)) as line:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        steps = [("Emulation.setDeviceMetricsOverride", screen)]
        steps += [("Runtime.evaluate", {"expression": f"{{{DEEP}\n{s}}}"}) for s in scripts]
        for method, values in [*steps, ("Page.captureScreenshot", {"format": "png"})]:
            line.send(json.dumps({"id": 1, "method": method, "params": values}))
            while "id" not in (answer := json.loads(line.recv())):
                pass  # an event, not the answer
            time.sleep(pause if "data" not in answer["result"] else 0)
        return base64.b64decode(answer["result"]["data"])
