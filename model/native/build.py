"""Compiles the kernels once for this machine, and loads what was compiled.

The library lies in the user's cache under a name that follows from the sources, the compiler and the processor. It is
written aside and renamed, so of processes that start at once each finds a whole one. Where there is no compiler, or
anything else is in the way, there is no library and nothing fails: torch computes the same, more slowly.
`SASREC_NATIVE=off` asks for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SWITCH = "SASREC_NATIVE"
COMPILER_VARIABLE = "CXX"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
SECONDS_TO_COMPILE = 300

_SOURCES = Path(__file__).parent
_CPU_LIST = Path("/proc/cpuinfo")
_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    if os.environ.get(SWITCH, "on").lower() in {"off", "0", "false", "no"} or sys.byteorder != "little":
        return None
    compiler = _compiler()
    if compiler is None:
        _log.info("no C++ compiler: the network is computed by torch alone")
        return None
    try:
        return ctypes.CDLL(str(compiled(compiler, _cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("the native kernels cannot be used here, torch computes alone: %s", error)
        return None


def compiled(compiler: Sequence[str], folder: Path) -> Path:
    """The library of these sources, made unless it stands in `folder`.

    Raises:
        OSError: no compiler, or nowhere to write.
        SubprocessError: it does not compile.
    """
    file = folder / f"kernels-{_key(compiler)}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / file.name
            command = [*compiler, *FLAGS, str(_SOURCES / "kernels.cpp"), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_TO_COMPILE)
            made.replace(file)
    return file


def _compiler() -> tuple[str, ...] | None:
    named = shlex.split(os.environ.get(COMPILER_VARIABLE, ""))
    if named:
        return tuple(named)
    return next(((found,) for name in COMPILERS if (found := shutil.which(name))), None)


def _cache_folder() -> Path:
    """The user's cache, or a folder of this user's alone where there is no home."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sasrec-stream" / "native"
    return Path(tempfile.mkdtemp(prefix="sasrec-stream-"))


def _key(compiler: Sequence[str]) -> str:
    """Of everything that the library follows from."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    digest = hashlib.sha256()
    for part in (shlex.join([*compiler, *FLAGS]).encode(), version, _processor().encode()):
        digest.update(hashlib.sha256(part).digest())
    for source in sorted((*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cpp"))):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` depends on."""
    told = {"machine": platform.machine(), "processor": platform.processor()}
    if _CPU_LIST.exists():
        for line in _CPU_LIST.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "flags", "Features", "CPU part"}:
                told.setdefault(name.strip(), value.strip())
    return repr(sorted(told.items()))
