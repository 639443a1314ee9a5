"""One trainer per folder of checkpoints: two would each undo what the other learnt.

Every trainer serves a term with a number, its epoch, one above every term before it. It is claimed by creating a file
that did not exist, which exactly one of several can do, on a local disk and on an object store alike. A local folder
is locked besides, so that a second trainer is refused at once. On a remote store, where nothing can be locked, the
holder renews its claim every few seconds, and a claim that is renewed refuses whoever comes.

A trainer that slept through its successor's claim, or was cut off from the store, finds the higher number before it
publishes, and stops. What it may have announced in that very moment carries its lower epoch: readers pass it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from model.store import Place, RemotePlace, create, names, read, remove, replace

LOCK_FILE = "trainer.lock"
TERMS = ".terms"
"""Folder of the claims, beside the lineages."""
BEAT_SECONDS = 3.0
LEASE_SECONDS = 10.0
"""A remote claim that is not renewed for so long belongs to nobody any more."""
CURE = "stop it, or give this one a state.directory (or state.checkpoints) of its own"


class FencedError(ValueError):
    """Another trainer has taken over."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves a term."""

    holder: str
    beat: int = 0
    """Counts renewals: whoever sees it change knows that the holder lives, whatever the clocks say."""
    ended: bool = False


class Term:
    """The time in office of one trainer."""

    def __init__(self, checkpoints: Place, epoch: int, claim: Claim) -> None:
        self.epoch = epoch
        self._checkpoints = checkpoints
        self._claim = claim

    def check(self) -> None:
        """Asks the store whether this is still the newest term.

        Raises:
            FencedError: it is not.
            OSError: the store does not answer.
        """
        newest = max(_epochs(self._checkpoints), default=0)
        if newest > self.epoch:
            raise FencedError(
                f"another trainer (term {newest}) has taken over {self._checkpoints} from this one (term "
                f"{self.epoch}); {CURE}"
            )

    def renew(self) -> None:
        """Shows that the holder lives."""
        self._rewrite(msgspec.structs.replace(self._claim, beat=self._claim.beat + 1))

    def end(self) -> None:
        """Whoever comes next need not wait."""
        self._rewrite(msgspec.structs.replace(self._claim, ended=True))

    def _rewrite(self, claim: Claim) -> None:
        self._claim = claim
        replace(_claim_path(self._checkpoints, self.epoch), msgspec.json.encode(claim))


@contextlib.contextmanager
def only_trainer(
    checkpoints: Place, *, lease_seconds: float = LEASE_SECONDS, beat_seconds: float = BEAT_SECONDS
) -> Iterator[Term]:
    """Holds the folder until the process ends, however it ends.

    Raises:
        ValueError: another trainer holds it, or it cannot be written.
    """
    if isinstance(checkpoints, Path):
        with _locked(checkpoints):
            yield _claimed(checkpoints)
        return
    _wait_for_silence(checkpoints, lease_seconds)
    term = _claimed(checkpoints)
    with _renewing(term, beat_seconds):
        yield term


@contextlib.contextmanager
def _locked(checkpoints: Path) -> Iterator[None]:
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        file = (checkpoints / LOCK_FILE).open("a+")
    except OSError as error:
        raise _unwritable(checkpoints, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            pid = file.read().strip()
            raise ValueError(f"another trainer (pid {pid}) works in {checkpoints}; {CURE}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _claimed(checkpoints: Place) -> Term:
    """The next term, and no older claims."""
    claim = Claim(holder=f"{socket.gethostname()} pid {os.getpid()} {secrets.token_hex(4)}")
    try:
        past = _epochs(checkpoints)
        epoch = max(past, default=0) + 1
        create(_claim_path(checkpoints, epoch), msgspec.json.encode(claim))
        for older in past:
            remove(_claim_path(checkpoints, older))
    except FileExistsError as error:
        raise ValueError(f"another trainer has just begun in {checkpoints}; {CURE}") from error
    except OSError as error:
        raise _unwritable(checkpoints, error) from error
    return Term(checkpoints, epoch, claim)


def _wait_for_silence(checkpoints: RemotePlace, lease_seconds: float) -> None:
    """Until the newest claim is ended, or was not renewed for the time of a lease by this process's own clock."""
    found = _newest(checkpoints)
    ends_at = time.monotonic() + lease_seconds
    while found is not None and not found.ended and time.monotonic() < ends_at:
        time.sleep(min(0.5, lease_seconds / 10))
        now = _newest(checkpoints)
        if now is not None and now != found and not now.ended:
            raise ValueError(f"another trainer ({now.holder}) works in {checkpoints}; {CURE}")
        found = now


def _newest(checkpoints: Place) -> Claim | None:
    try:
        epochs = _epochs(checkpoints)
        return msgspec.json.decode(read(_claim_path(checkpoints, epochs[-1])), type=Claim) if epochs else None
    except FileNotFoundError:
        return _newest(checkpoints)  # a successor removed it between the two questions
    except OSError as error:
        raise ValueError(f"{checkpoints} cannot be read ({error}); see that the store answers") from error
    except msgspec.DecodeError:
        return None


@contextlib.contextmanager
def _renewing(term: Term, beat_seconds: float) -> Iterator[None]:
    """Beside the trainer; a store that does not answer for a while is said, and asked again."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(beat_seconds):
            try:
                term.renew()
            except OSError as error:
                structlog.get_logger().warning("the trainer's claim was not renewed", reason=str(error))

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            term.end()


def _epochs(checkpoints: Place) -> list[int]:
    """Ascending."""
    stems = (name.removesuffix(".json") for name in names(checkpoints / TERMS))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _claim_path(checkpoints: Place, epoch: int) -> Place:
    return checkpoints / TERMS / f"{epoch:08d}.json"


def _unwritable(checkpoints: Place, error: OSError) -> ValueError:
    return ValueError(
        f"{checkpoints} cannot be written ({error.strerror or error}); make it writable, or set state.checkpoints"
    )
