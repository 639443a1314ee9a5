"""Other recommenders, in an environment of their own: what they pin never meets what this project pins.

    .venv/bin/python -m benchmarks.peers SCRIPT.py [ARGUMENTS]

The first call makes the environment in the user's cache (RecTools with the torch that is installed here, minutes where
torch must be fetched); later calls find it. `heard` gives a script's last line, read as JSON, to a benchmark.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from deploy.local.kafka_cache import cache_folder, made_once
from requirements.install import PINS, pip_settings, uv_environment

RECTOOLS = "rectools[torch]==0.19.0"


def main() -> None:
    """Runs a script with the peers' Python, for people."""
    if len(sys.argv) < 2:
        sys.exit("which script? python -m benchmarks.peers SCRIPT.py [ARGUMENTS]")
    sys.exit(subprocess.run([peer_python(), *sys.argv[1:]], check=False).returncode)


def peer_python() -> Path:
    """The interpreter of the peers' environment, which stands when this returns.

    Raises:
        ValueError: it could not be made.
    """
    requirements = (RECTOOLS, f"torch=={version('torch').partition('+')[0]}")
    named = hashlib.sha256("\n".join((*requirements, sys.version)).encode()).hexdigest()[:16]
    folder = made_once(cache_folder() / f"peers-{named}", functools.partial(_fill, requirements=requirements))
    return folder / "bin" / "python"


def heard(script: Path, arguments: Sequence[str] = ()) -> object:
    """What the script printed last, read as JSON; the rest goes to standard error.

    Raises:
        ValueError: the script failed.
    """
    command = [str(peer_python()), str(script), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise ValueError(f"{script.name} failed with status {done.returncode}; what it said stands above")
    return msgspec.json.decode(lines[-1])


def _fill(folder: Path, *, requirements: Sequence[str]) -> None:
    python = folder / "bin" / "python"
    print(f"making the peers' environment, once: {', '.join(requirements)}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", PINS, "uv"], check=True)
        subprocess.run(
            [python, "-m", "uv", "pip", "install", "--python", python, *requirements],
            check=True,
            env=uv_environment(pip_settings(), _environment()),
        )
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"the peers' environment could not be made: {error}; is the package index reachable?"
        ) from error


def _environment() -> dict[str, str]:
    """Without the virtual environment of the caller, in which uv would install."""
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}


if __name__ == "__main__":
    main()
