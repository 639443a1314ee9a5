"""Where checkpoints are kept: a local folder, or a URL (s3://, gs://, abfs://, ...) through fsspec. Whole files only.

A `Place` is a `Path` or a `RemotePlace`; both know `/`, `name` and `parent`. `create` writes a file that is whole or
absent and was not there before: on a local disk by a hard link to a synced file, on an object store by a conditional
put. So of two writers of one name exactly one succeeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

if TYPE_CHECKING:
    from typing import TypeAlias

PARTIAL = ".partial"
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
"""The optional dependencies that a URL needs."""


@dataclasses.dataclass(frozen=True)
class RemotePlace:
    """A file or folder of a store that fsspec knows, by its URL."""

    url: str

    def __truediv__(self, name: str) -> RemotePlace:
        return RemotePlace(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePlace:
        """The folder that it is in."""
        return RemotePlace(self.url.rpartition("/")[0])


Place: TypeAlias = Path | RemotePlace


def place_of(text: str | Path) -> Place:
    """The place of a URL, or of a path where it is none.

    Raises:
        ValueError: nothing installed here can reach such URLs.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    remote = RemotePlace(text.rstrip("/"))
    protocol = text.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        cure = f"install sasrec-stream[{extra}]" if extra else "name a folder, or an s3://, gs:// or abfs:// URL"
        raise ValueError(f"{text} cannot be reached ({error}); {cure}") from error
    return remote


def absolute(place: Place) -> str:
    """The place as another process can find it: a URL, or a path from the root."""
    return str(place.absolute()) if isinstance(place, Path) else place.url


def read(place: Place) -> bytes:
    """A file's bytes.

    Raises:
        OSError: absent, or the store does not answer.
    """
    if isinstance(place, Path):
        return place.read_bytes()
    with _as_os_errors(place):
        content: bytes = _store(place).cat_file(place.url)
        return content


def create(place: Place, content: bytes) -> None:
    """Writes a new file, whole or not at all; folders above it are made.

    Raises:
        FileExistsError: there is one already.
        OSError: it could not be written.
    """
    if isinstance(place, Path):
        with _written_aside(place, content) as aside:
            _link(aside, place)
        sync_folder(place.parent)
        return
    with _as_os_errors(place):
        _store(place).pipe_file(place.url, content, mode="create")


def replace(place: Place, content: bytes) -> None:
    """Writes a file anew, whole; readers see the old or the new one.

    Raises:
        OSError: it could not be written.
    """
    if isinstance(place, Path):
        with _written_aside(place, content) as aside:
            aside.replace(place)
        return
    with _as_os_errors(place):
        _store(place).pipe_file(place.url, content)


def names(folder: Place) -> list[str]:
    """What stands directly in a folder, sorted; nothing where there is no folder.

    Raises:
        OSError: the store does not answer.
    """
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    with _as_os_errors(folder):
        try:
            found = _store(folder).ls(folder.url, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        own = folder.url.rpartition("://")[2]
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found if str(path).strip("/") != own)


def remove(place: Place) -> None:
    """Removes a file or a folder with all that is in it; what is gone already is no error.

    Raises:
        OSError: it could not be removed.
    """
    if isinstance(place, Path):
        _remove_local(place)
        return
    with _as_os_errors(place), contextlib.suppress(FileNotFoundError):
        _store(place).rm(place.url, recursive=True)


def sync_folder(path: Path) -> None:
    """Lets a local folder's entries survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new local file and waits until it would survive a power cut."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _written_aside(path: Path, content: bytes) -> Iterator[Path]:
    """A synced file beside `path` with this content, gone at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        write_synced(aside, content)
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _link(aside: Path, path: Path) -> None:
    """Gives the file its name, if nothing has that name; where a file system knows no hard links, by a rename."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        path.touch(exist_ok=False)  # of two who come here one succeeds
        aside.replace(path)


def _remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _store(place: RemotePlace) -> Any:  # noqa: ANN401 - fsspec ships no types
    """The file system of a URL; fsspec keeps one per process and kind. Listings are never taken from memory."""
    return fsspec.core.url_to_fs(place.url, use_listings_cache=False)[0]


@contextlib.contextmanager
def _as_os_errors(place: RemotePlace) -> Iterator[None]:
    """Every store has exceptions of its own; whoever uses one knows only OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(place)) from error
