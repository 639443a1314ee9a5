"""Installs this project, editable, with the extras named, at the pinned versions, into the environment it runs in.

By uv, which takes seconds where pip takes minutes; uv is told what pip is configured with, for some machines configure
only pip. Bytecode is compiled here, once: otherwise each of the six processes would, all at the same time, at the first
start. Where uv cannot do it, pip does. With TORCH=cpu (or cu128, ...) uv picks that build of torch.

`python requirements/install.py .[local-kafka,dev]`
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PINS = Path(__file__).with_name("pins.txt")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
"""pip's settings, and the variables by which uv learns the same."""


def pip_settings() -> dict[str, str]:
    """What pip is configured with, from its files and from PIP_* variables, which win."""
    listed = subprocess.run([*PIP, "config", "list"], check=True, capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = ast.literal_eval(value)
    return settings


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with pip's settings for uv; what was set for uv itself wins."""
    told = {UV_VARIABLES[key]: value for key, value in settings.items() if key in UV_VARIABLES}
    return {**told, **environment}


def install_by_uv(project: str) -> bool:
    """Whether it worked."""
    torch = os.environ.get("TORCH")
    backend = ("--torch-backend", torch) if torch else ()
    if subprocess.run([*PIP, "install", "--quiet", "--constraint", str(PINS), "uv"], check=False).returncode:
        return False
    command = (sys.executable, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", sys.executable, *backend)
    pinned = ("--constraints", str(PINS), "--build-constraints", str(PINS), "--editable", project)
    return not subprocess.run(
        [*command, *pinned], env=uv_environment(pip_settings(), os.environ), check=False
    ).returncode


def install_by_pip(project: str) -> bool:
    """Whether it worked."""
    return not subprocess.run(
        [*PIP, "install", "--constraint", str(PINS), "--editable", project], check=False
    ).returncode


def main() -> None:
    """Installs what the command line names."""
    project = sys.argv[1]
    if install_by_uv(project):
        return
    left_out = " (TORCH is left out: pip does not know it)" if os.environ.get("TORCH") else ""
    sys.stderr.write(f"uv could not install it; trying pip{left_out}\n")
    if not install_by_pip(project):
        sys.exit("neither uv nor pip could install it: see above")


if __name__ == "__main__":
    main()
