"""Safe downloads: resume, checksum, mirrors, free space, careful unpacking. Knows nothing about any data set."""

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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

CHUNK = 1 << 20
TRIES_PER_MIRROR = 3


class DataError(RuntimeError):
    """Data is not available; the message says why and what to do next."""


@dataclass(frozen=True)
class Remote:
    """One file to fetch: mirrors in the order in which they are tried, bytes, `md5:...` or `sha256:...`."""

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
    algorithm, expected = checksum.split(":")
    return digest(path, algorithm) == expected


def check_space(folder: Path, needed: int) -> None:
    """Raise DataError when the disk of `folder` has fewer than `needed` bytes free (and 5 % more)."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise DataError(
            f"Not enough space in {folder}: {needed * 1.05 / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB "
            "are free. Make room, or put the data on another disk with STUDY_DATA=/path."
        )


def download_file(remote: Remote, folder: Path, timeout: float = 20.0, bar: bool = True) -> Path:
    """Fetch `remote` into `folder` and return its path.

    A complete file with the right checksum is not fetched again. An interrupted transfer leaves a `.part` file; a
    later call continues from its end with an HTTP range request (RFC 9110, section 14). Each mirror is tried
    up to three times. Raises DataError in one sentence when no mirror had the right file or the disk is full.
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
        "same command continues from there. Without network, copy the file from another machine to "
        f"{target}."
    )


def _from_mirror(url: str, remote: Remote, part: Path, timeout: float, bar: bool) -> str | None:
    """Try one mirror; None when `part` is complete and correct, else the reason why not."""
    reason = "not tried"
    for _ in range(TRIES_PER_MIRROR):
        try:
            _transfer(url, remote, part, timeout, bar)
        except urllib.error.URLError as e:
            code = getattr(e, "code", None)
            if code != 416:
                return f"the server answered {code}" if code else f"no connection ({e.reason})"
            part.unlink(missing_ok=True)  # longer than the server's file: not the same file
            continue
        except (TimeoutError, ConnectionError, http.client.HTTPException) as e:
            reason = f"the connection broke ({type(e).__name__})"
            continue
        except OSError as e:
            if not _is_full(e):
                raise
            raise _disk_full(f"{remote.filename} stopped half way") from e
        got = part.stat().st_size
        if got < remote.size:
            reason = f"truncated at {got:,} of {remote.size:,} bytes"
        elif verify(part, remote.checksum):
            return None
        else:
            reason = f"wrong checksum (not {remote.checksum})"
            part.unlink()
    return reason


def _transfer(url: str, remote: Remote, part: Path, timeout: float, bar: bool) -> None:
    """Append what is missing to `part`; start anew if the server does not support ranges."""
    have = part.stat().st_size if part.exists() else 0
    if have == remote.size:
        return
    have = have if have < remote.size else 0  # too long: not the same file
    request = urllib.request.Request(url, headers={"User-Agent": "ml_speech_learning"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status != 206:
            have = 0
        shown = tqdm(desc=remote.filename, total=remote.size, initial=have, disable=not bar)
        shown.unit, shown.unit_scale = "B", True
        with shown, open(part, "ab" if have else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                shown.update(len(chunk))
                if out.tell() > remote.size:  # a login page, or an endless answer
                    break


def unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack a `.tar.*`, `.tgz` or single-file `.gz` into `folder`.

    Absolute names, `..`, links and devices are refused before a single file is written, and so are more than
    `limit` bytes of content. Files appear whole or not at all (they are unpacked beside, then moved). Raises
    DataError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", suffix=".tmp", dir=folder))
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = tar.getmembers()
                if bad := next((m for m in members if not _is_safe(m)), None):
                    raise _refused(archive, f"contains {bad.name!r}, a link or a path outside")
                if sum(m.size for m in members) > limit:
                    raise _refused(archive, f"unpacks to more than {limit:,} bytes")
                tar.extractall(scratch, filter="data")
        elif archive.suffix == ".gz":
            with gzip.open(archive) as stream:
                content = stream.read(limit + 1)
            if len(content) > limit:
                raise _refused(archive, f"unpacks to more than {limit:,} bytes")
            (scratch / archive.stem).write_bytes(content)
        else:
            raise DataError(f"{archive.name} is no archive that can be unpacked. Fetch it again.")
        _merge(scratch, folder)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError) as e:
        raise DataError(f"{archive.name} is damaged ({e}). Delete it and fetch again.") from e
    except OSError as e:
        if not _is_full(e):
            raise
        raise _disk_full(f"{archive.name} could not be unpacked") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_safe(member: tarfile.TarInfo) -> bool:
    """Whether it is a file or folder whose name stays inside, on Windows too."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    outside = not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":")
    return (member.isfile() or member.isdir()) and not outside


def _refused(archive: Path, reason: str) -> DataError:
    return DataError(
        f"{archive.name} {reason}, so it was refused and nothing was unpacked. Fetch it again from the "
        "original site, or tell the maintainers."
    )


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _disk_full(what: str) -> DataError:
    return DataError(
        f"The disk is full: {what}. Make room and run the same command again (it continues from there), or "
        "put the data on another disk with STUDY_DATA=/path."
    )


def _merge(source: Path, folder: Path) -> None:
    """Move what was unpacked into place; whole folders at once where there is nothing yet."""
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            _merge(entry, target)
        else:
            os.replace(entry, target)
