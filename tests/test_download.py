"""Fetching, against a server on loopback that can misbehave, and unpacking of hostile archives."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
from collections import namedtuple

import pytest

from utils import days, sources
from utils.sources import catalogue, download
from utils.sources.download import DataError, Remote

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT by paths that name the fault; keeps the ranges that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind = self.path.strip("/").split("/")[0]
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if kind == "missing":
            self.send_error(404)
            return
        body = CONTENT[::-1] if kind == "wrong" else CONTENT
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and kind != "norange" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        first_half = kind == "breaks" or (kind == "breaksonce" and not start)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(part[: len(part) // 2] if first_half else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    s = Server()
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def remote(*urls: str, size: int = len(CONTENT)) -> Remote:
    return Remote(urls, size, "sha256:" + hashlib.sha256(CONTENT).hexdigest())


def test_a_file_arrives_and_is_not_fetched_twice(server, tmp_path):
    entry = remote(server.url("good/file.bin"))
    assert download.download_file(entry, tmp_path, bar=False).read_bytes() == CONTENT
    download.download_file(entry, tmp_path, bar=False)
    assert len(server.asked) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    entry = remote(server.url("breaksonce/file.bin"))
    assert download.download_file(entry, tmp_path, bar=False).read_bytes() == CONTENT
    assert server.asked[0][1] is None
    assert server.asked[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_truncated_download_is_kept_and_said(server, tmp_path):
    entry = remote(server.url("breaks/file.bin"))
    with pytest.raises(DataError, match="truncated at .* continues from there"):
        download.download_file(entry, tmp_path, bar=False)
    assert (tmp_path / "file.bin.part").stat().st_size > 0
    assert not (tmp_path / "file.bin").exists()
    good = remote(server.url("good/file.bin"))
    assert download.download_file(good, tmp_path, bar=False).read_bytes() == CONTENT
    assert server.asked[-1][1].startswith("bytes=")


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    entry = remote(server.url("norange/file.bin"))
    assert download.download_file(entry, tmp_path, bar=False).read_bytes() == CONTENT


def test_a_wrong_part_is_thrown_away_and_fetched_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    entry = remote(server.url("good/file.bin"))
    assert download.download_file(entry, tmp_path, bar=False).read_bytes() == CONTENT


def test_wrong_checksum_is_never_accepted(server, tmp_path):
    with pytest.raises(DataError, match="wrong checksum"):
        download.download_file(remote(server.url("wrong/file.bin")), tmp_path, bar=False)
    assert list(tmp_path.glob("file.bin*")) == []


def test_the_next_mirror_is_tried(server, tmp_path):
    urls = [server.url(f"{kind}/file.bin") for kind in ("missing", "wrong", "good")]
    assert download.download_file(remote(*urls), tmp_path, bar=False).read_bytes() == CONTENT


def test_no_network_is_one_clear_sentence(tmp_path):
    entry = remote("http://127.0.0.1:9/file.bin")  # the discard port: nobody listens
    with pytest.raises(DataError, match="no connection.*copy the file"):
        download.download_file(entry, tmp_path, bar=False)


def test_an_answer_that_does_not_end_is_cut_off(server, tmp_path):
    short = CONTENT[:1000]
    entry = Remote((server.url("good/file.bin"),), 1000, "sha256:" + hashlib.sha256(short).hexdigest())
    with pytest.raises(DataError, match="wrong checksum"):
        download.download_file(entry, tmp_path, bar=False)


def test_free_space_is_looked_at_first(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(DataError, match="Not enough space.*STUDY_DATA"):
        download.download_file(remote(server.url("good/file.bin")), tmp_path, bar=False)
    assert not server.asked


def test_a_disk_that_fills_up_is_said_and_the_part_is_kept(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, chunk):
            super().write(chunk[: len(chunk) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode="r", *a, **k):
        return Full(path, "a") if str(path).endswith(".part") and mode != "rb" else open(path, mode)

    monkeypatch.setattr(download, "open", opened, raising=False)
    entry = remote(server.url("good/file.bin"))
    with pytest.raises(DataError, match="disk is full.*continues from there"):
        download.download_file(entry, tmp_path, bar=False)
    kept = (tmp_path / "file.bin.part").read_bytes()
    assert kept
    assert CONTENT.startswith(kept)


# --- unpacking ---------------------------------------------------------------


def tar_with(path, *members):
    with tarfile.open(path, "w:gz") as t:
        for info, content in members:
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../out.txt"),
        member("a/../../out.txt"),
        member("/out.txt"),
        member("..\\out.txt"),
        member("C:\\out.txt"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "good.txt"),
        member("fifo", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda m: f"{m.name}-{m.type.decode()}",
)
def test_hostile_tar_is_refused_whole(tmp_path, bad):
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "in"
    tar_with(archive, (member("good.txt"), b"good"), (bad, b""))
    with pytest.raises(DataError, match="refused"):
        download.unpack(archive, folder, limit=10**6)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("suffix", [".tar.gz", ".gz"])
def test_more_than_it_should_hold_is_refused(tmp_path, suffix):
    archive, content = tmp_path / f"bomb{suffix}", b"0" * 1_000_000
    if suffix == ".gz":
        archive.write_bytes(gzip.compress(content))
    else:
        tar_with(archive, (member("bomb"), content))
    with pytest.raises(DataError, match="refused"):
        download.unpack(archive, tmp_path / "in", limit=1000)
    assert list((tmp_path / "in").iterdir()) == []


def test_good_archives_unpack_into_a_folder_that_is_there(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old.txt").write_text("old")
    tar_with(tmp_path / "a.tar.gz", (member("sub/new.txt"), b"new"), (member("top.txt"), b"top"))
    download.unpack(tmp_path / "a.tar.gz", folder, limit=100)
    (tmp_path / "single.txt.gz").write_bytes(gzip.compress(b"single"))
    download.unpack(tmp_path / "single.txt.gz", folder, limit=100)
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.txt")}
    assert found == {"sub/old.txt": "old", "sub/new.txt": "new", "top.txt": "top", "single.txt": "single"}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.gz", "a.zip"])
def test_a_damaged_archive_is_said(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(CONTENT)[:-2000] + b"junk")
    with pytest.raises(DataError, match="damaged|no archive"):
        download.unpack(tmp_path / name, tmp_path / "in", limit=10**8)


# --- a whole set, from mirrors to disk ---------------------------------------


@pytest.fixture
def toy_set(tmp_path, monkeypatch):
    """A set of two gz files served on loopback under the layout of MNIST."""
    served, raw = tmp_path / "served", {"a-ubyte": b"a" * 3000, "b-ubyte": b"b" * 500}
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *_):
            pass

    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    files = []
    for name, content in raw.items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        url = f"http://127.0.0.1:{s.server_port}/{name}.gz"
        files.append(Remote((url,), len(packed), "md5:" + hashlib.md5(packed).hexdigest()))
    checksums = {f"Toy/raw/{n}": f"sha256:{hashlib.sha256(c).hexdigest()}" for n, c in raw.items()}
    entry = catalogue.Source("toy", "none", "Toy/raw", tuple(files), 3500, checksums)
    monkeypatch.setitem(catalogue.SOURCES, "toy", entry)
    second = days.Day(2, "Training_Loop", "accuracy", ("toy",))
    monkeypatch.setattr(days, "ALL", (second,))
    yield tmp_path / "root", served
    s.shutdown()
    s.server_close()


def test_fetch_unpacks_and_identifies(toy_set):
    root, served = toy_set
    assert sources.ensure_available("toy", root) == "toy"
    assert (root / "Toy/raw/a-ubyte").read_bytes() == b"a" * 3000
    assert not list((root / ".downloads").glob("*.gz"))
    shutil.rmtree(served)  # from here on there is no network
    assert sources.ensure_available("toy", root) == "toy"


def test_a_set_is_named_by_what_it_is(toy_set):
    root, _ = toy_set
    sources.fetch("toy", root, bar=False)
    (root / "Toy/raw/a-ubyte").write_bytes(b"something else in the same place")
    assert sources.identify("toy", root).startswith("toy-other-")
    assert sources.ensure_available("toy", root) == sources.identify("toy", root)


def test_missing_data_names_three_ways_on(toy_set):
    root, served = toy_set
    shutil.rmtree(served)
    with pytest.raises(DataError) as caught:
        sources.ensure_available("toy", root)
    for way in ("make fetch DAY=2", "STUDY_DATA=/path", 'PROFILE = "quick"'):
        assert way in str(caught.value)


def test_unknown_set_lists_the_known_ones():
    with pytest.raises(DataError, match="there are: mnist"):
        sources.fetch("mnits")
