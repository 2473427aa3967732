"""The one place that knows where data is, how it gets there, and what it is.

The root is `$STUDY_DATA`, by default `data/` in the repository. Each set has the layout of torchvision, torchaudio
or Hugging Face, so a copy that you already have is used as it is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..days import ROOT, using
from . import catalogue
from .download import DataError, check_space, digest, download_file, unpack, verify


def data_root() -> Path:
    """`$STUDY_DATA`, by default `data/` in the repository."""
    return Path(os.environ.get("STUDY_DATA") or ROOT / "data").expanduser()


def is_here(name: str, root: Path | None = None) -> bool:
    """Whether the files of the set are on disk, whatever their content."""
    root, entry = root or data_root(), catalogue.source(name)
    if name in catalogue.NAMES:
        return bool(catalogue.NAMES[name](root))
    return all((root / file).is_file() for file in entry.checksums)


def identify(name: str, root: Path | None = None) -> str:
    """What the set on disk is, by the names or the content of its files: its name, or `name-other-1a2b3c4d`.

    A result is named after this, never after what the folder was meant to contain.
    """
    root, entry = root or data_root(), catalogue.source(name)
    base, count = entry.name, ""
    if name in catalogue.NAMES:
        names = catalogue.NAMES[name](root)
        if not names:
            return f"{base}-missing"
        content, count = "\n".join(names).encode(), str(len(names))
        if name == "speech_commands":
            base = f"speech_commands_v{catalogue.speech_commands_folder(root).name[-1]}"
    elif all(verify(root / file, checksum) for file, checksum in entry.checksums.items()):
        return base
    elif name == "cifar10":  # by its pixels, however they were packed
        batches = [catalogue.read_cifar10_batch(root / f)[0] for f in catalogue.CIFAR10_BATCHES]
        content = b"".join(pixels.tobytes() for pixels in batches)
    else:
        content = "".join(digest(root / file) for file in sorted(entry.checksums)).encode()
    mark = hashlib.sha256(content).hexdigest()
    return entry.known.get(mark) or entry.known.get(count) or f"{base}-other-{mark[:8]}"


def fetch(name: str, root: Path | None = None, bar: bool = True) -> Path:
    """Fetch, verify and unpack a set unless it is on disk. Returns the root.

    Raises DataError in one sentence: no network, wrong checksum, full disk, refused archive.
    """
    root, entry = root or data_root(), catalogue.source(name)
    if is_here(name, root):
        return root
    if not entry.files:
        command = entry.manual_download.format(folder=_shown(root / entry.folder))
        raise DataError(
            f"{name} has no archive with a published checksum, so it is fetched by hand: {command}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_space(root, sum(f.size for f in entry.files) + entry.unpacked_bytes)
        downloads = root / ".downloads"
        archives = [download_file(remote, downloads, bar=bar) for remote in entry.files]
    except PermissionError as e:
        raise DataError(
            f"{e.filename} cannot be written. Choose another folder with STUDY_DATA=/path."
        ) from e
    for archive in archives:
        unpack(archive, root / entry.folder, limit=entry.unpacked_bytes)
    for archive in archives:
        archive.unlink()
    if identify(name, root) != entry.name:
        raise DataError(
            f"{name} was unpacked into {_shown(root / entry.folder)}, but its files are not the known "
            "ones. Delete the folder and fetch again."
        )
    return root


def ensure_available(name: str, root: Path | None = None) -> str:
    """Make sure that a set is on disk, fetching it where there is network; returns what it is (`identify`).

    Raises DataError, which names three ways to continue, when it is missing and cannot be fetched.
    """
    root, entry = root or data_root(), catalogue.source(name)
    if not is_here(name, root):
        try:
            fetch(name, root)
        except DataError as e:
            day, held = using(name)[0], entry.expected_path or entry.folder
            raise DataError(
                f"The data set {name} is not in {_shown(root)} and could not be fetched. Three ways to continue:\n"
                f"  1. where there is network:    make fetch DAY={day}\n"
                f"  2. a copy that you have:      STUDY_DATA=/path  (a folder that contains {held})\n"
                f'  3. the bundled sample:        PROFILE = "quick"\n'
                f"Why: {e}"
            ) from e
    return identify(name, root)


def _shown(path: Path) -> str:
    """A path without this machine's folders, for messages that may be published in a notebook."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
