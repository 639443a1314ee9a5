"""The user's cache: what is fetched or made once, and never changes afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Where this program keeps what it can always fetch or make again: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sasrec-stream"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of that file; the operating system lets go of it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Waits until no other process of this user does the same, and keeps them from it."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _locked(cache_folder() / f"{what}.lock"):
        yield


def made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, filled by `fill` unless it stands already.

    It is filled aside and then renamed, so what an interrupted fill leaves is never used; of two processes, the second
    waits and takes what the first has made.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            _fill_aside(folder, fill)
    return folder


def _fill_aside(folder: Path, fill: Callable[[Path], None]) -> None:
    aside = folder.with_name(f"{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    fill(aside)
    os.sync()  # else a power cut could leave the new name with empty files
    aside.rename(folder)
