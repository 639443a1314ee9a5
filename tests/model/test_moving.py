"""The way of tensors to the network; on a GPU tests/model/test_cuda.py follows it."""

from __future__ import annotations

import torch

from model.moving import moved


def test_on_a_cpu_nothing_is_copied() -> None:
    rows = torch.arange(3)

    assert moved(rows, torch.device("cpu")) is rows
