"""One thread, so that the same seed gives the same bytes on every machine; and both ways to compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.native.build import SWITCH, library
from model.native.functions import kernels


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["kernels", "torch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """By the compiled kernels, and by torch alone as where they cannot be had."""
    if request.param == "torch":
        monkeypatch.setenv(SWITCH, "off")
    _forget()
    if request.param == "kernels" and kernels() is None:
        pytest.skip("no native kernels: there is no C++ compiler, or they are switched off")
    yield request.param
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    library.cache_clear()
    kernels.cache_clear()
