"""Files from the network, safely: resume, checksum, mirrors, free space, careful unpacking.

Knows nothing about any data set (that is `utils.data`) and needs only the standard library, tqdm and filelock.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

CHUNK = 1 << 20
TRIES_PER_MIRROR = 3


class DataError(RuntimeError):
    """Data could not be had; the message says why and what to do next."""


@dataclass(frozen=True)
class Remote:
    """One file to fetch: mirrors in the order of trial, bytes on the wire, `md5:...` or `sha256:...`."""

    urls: tuple[str, ...]
    size: int
    checksum: str

    @property
    def filename(self) -> str:
        return self.urls[0].rsplit("/", 1)[-1]


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def verify(path: Path, checksum: str) -> bool:
    """Whether the file has this `algorithm:hexdigest`."""
    algorithm, wanted = checksum.split(":")
    return digest(path, algorithm) == wanted


def check_space(folder: Path, needed: int) -> None:
    """Raise DataError when the disk of `folder` has fewer than `needed` bytes free (and 5 % more)."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise DataError(
            f"Not enough space in {folder}: {needed * 1.05 / 1e6:,.0f} MB are needed, "
            f"{free / 1e6:,.0f} MB are free. Make room, or put the data on another disk with "
            "STUDY_DATA=/path."
        )


def download(remote: Remote, folder: Path, timeout: float = 20.0, bar: bool = True) -> Path:
    """Fetch `remote` into `folder` and return its path.

    A complete file with the right checksum is left alone. A transfer that broke off leaves a
    `.part` file, and the next call (or the next try) goes on from its end with an HTTP range
    request (RFC 9110, section 14). Each mirror is tried three times before the next one.
    Raises DataError in one sentence when no mirror gave the right file or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / remote.filename
    part = target.with_name(target.name + ".part")
    with FileLock(str(folder / f".{target.name}.lock")):
        if target.exists() and verify(target, remote.checksum):
            return target
        have = part.stat().st_size if part.exists() else 0
        check_space(folder, max(0, remote.size - have))
        reasons = []
        for url in remote.urls:
            reason = _from_mirror(url, remote, part, timeout, bar)
            if reason is None:
                os.replace(part, target)
                return target
            reasons.append(f"{url}: {reason}")
    raise DataError(
        f"{remote.filename} could not be fetched ({'; '.join(reasons)}). What arrived is kept: the "
        "same command goes on from there. Without network, copy the file from another machine to "
        f"{target}."
    )


def _from_mirror(url: str, remote: Remote, part: Path, timeout: float, bar: bool) -> str | None:
    """Try one mirror; None when `part` is complete and right, else the reason why not."""
    reason = "not tried"
    for _ in range(TRIES_PER_MIRROR):
        try:
            _transfer(url, remote, part, timeout, bar)
        except urllib.error.HTTPError as e:
            if e.code == 416:  # our part is longer than their file: not the same file
                part.unlink(missing_ok=True)
            reason = f"the server answered {e.code} {e.reason}"
            if e.code in (403, 404, 410):
                return reason
            continue
        except urllib.error.URLError as e:
            return f"no connection ({e.reason})"
        except (TimeoutError, ConnectionError, http.client.HTTPException) as e:
            reason = f"the connection broke ({type(e).__name__})"
            continue
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"The disk is full: {remote.filename} stopped at {part.stat().st_size:,} of "
                    f"{remote.size:,} bytes. Make room and run the same command again (it goes on "
                    "from there), or put the data on another disk with STUDY_DATA=/path."
                ) from e
            raise
        got = part.stat().st_size
        if got < remote.size:
            reason = f"truncated at {got:,} of {remote.size:,} bytes"
        elif verify(part, remote.checksum):
            return None
        else:
            reason = f"wrong checksum (wanted {remote.checksum})"
            part.unlink()
    return reason


def _transfer(url: str, remote: Remote, part: Path, timeout: float, bar: bool) -> None:
    """Append to `part` what is missing; start anew where the server does not do ranges."""
    have = part.stat().st_size if part.exists() else 0
    if have >= remote.size:
        if have == remote.size:
            return
        part.unlink()
        have = 0
    headers = {"User-Agent": "ml_speech_learning", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status != 206:
            have = 0
        with (
            open(part, "ab" if have else "wb") as out,
            tqdm(
                total=remote.size,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=remote.filename,
                disable=not bar,
            ) as progress,
        ):
            while chunk := response.read(CHUNK):
                out.write(chunk)
                progress.update(len(chunk))
                if out.tell() > remote.size:  # a login page, or an endless answer
                    break


def unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack a `.tar.*`, `.tgz`, `.zip` or single-file `.gz` into `folder`.

    Nothing leaves `folder`: absolute names, `..`, links and devices are refused before a single
    file is written, and so is more than `limit` bytes of content. Files appear whole or not at all
    (they are unpacked beside and then moved). Raises DataError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", suffix=".tmp", dir=folder))
    try:
        written = 0
        for name, stream in _members(archive):
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, open(target, "wb") as out:
                while chunk := stream.read(CHUNK):
                    written += len(chunk)
                    if written > limit:
                        raise DataError(
                            f"{archive.name} unpacks to more than the {limit:,} bytes it should "
                            "have: it was refused. Fetch it again, or tell the maintainers."
                        )
                    out.write(chunk)
        _merge(scratch, folder)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as e:
        raise DataError(f"{archive.name} is damaged ({e}). Delete it and fetch again.") from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"The disk is full: {archive.name} could not be unpacked into {folder}. Make room, "
                "or put the data on another disk with STUDY_DATA=/path."
            ) from e
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
    """(safe relative name, open stream) of each file; checks every name before yielding any."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for m in members:
                if not (m.isfile() or m.isdir()):
                    raise DataError(
                        f"{archive.name} holds a link or device ({m.name!r}) and was refused: "
                        "nothing was unpacked. Fetch it again from the original site."
                    )
                _safe_name(m.name, archive)
            for m in members:
                if m.isfile():
                    stream = tar.extractfile(m)
                    assert stream is not None  # isfile() says so
                    yield _safe_name(m.name, archive), stream
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for info in z.infolist():
                if (info.external_attr >> 28) == 0xA:
                    raise DataError(
                        f"{archive.name} holds a link ({info.filename!r}) and was refused: "
                        "nothing was unpacked. Fetch it again from the original site."
                    )
                _safe_name(info.filename, archive)
            for info in z.infolist():
                if not info.is_dir():
                    yield _safe_name(info.filename, archive), z.open(info)
    elif archive.suffix == ".gz":
        yield PurePosixPath(archive.stem), gzip.open(archive, "rb")  # noqa: SIM115  closed by unpack
    else:
        raise DataError(
            f"{archive.name} is no archive that can be unpacked. Delete it and fetch again."
        )


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
        raise DataError(
            f"{archive.name} wants to write outside its folder ({name!r}) and was refused: "
            "nothing was unpacked. Fetch it again from the original site."
        )
    return path


def _merge(source: Path, folder: Path) -> None:
    """Move what was unpacked into place; whole folders at once where nothing stands there yet."""
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            _merge(entry, target)
        else:
            os.replace(entry, target)
