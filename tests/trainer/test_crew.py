"""Two processes learn one model: what one process learns with batches of twice the size, in the same bytes on both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from deploy.local.kafka_settings import free_port
from model.settings import ModelSettings
from tests.trainer.crew_member import SETTINGS, gradients, learnt
from trainer.crew import ALONE, Crew
from trainer.learner import Learner
from trainer.settings import TrainerSettings

PROCESSES = 2


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, np.ndarray]]:
    """What each of two real processes ended with; gloo is between them."""
    path, port = tmp_path_factory.mktemp("crew") / "member", free_port()
    command = [sys.executable, "-m", "tests.trainer.crew_member", str(path)]
    shared = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(PROCESSES)]
    assert [process.wait() for process in processes] == [0] * PROCESSES
    return [dict(np.load(f"{path}.{rank}.npz")) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_reach_the_loss_of_one_with_twice_the_batch(
    members: list[Mapping[str, np.ndarray]], name: str
) -> None:
    alone = learnt(name)

    assert alone["losses"][-2] < alone["losses"].max()
    for key, array in alone.items():
        together = members[0][f"{name}/{key}"]
        if array.dtype.kind == "f":
            np.testing.assert_allclose(together, array, rtol=1e-4, atol=1e-4, err_msg=key)
        else:
            assert np.array_equal(together, array), key


def test_both_processes_end_with_the_same_bytes(members: list[Mapping[str, np.ndarray]]) -> None:
    first, second = members

    assert first.keys() == second.keys()
    assert [key for key in first if first[key].tobytes() != second[key].tobytes()] == []


def test_gradients_of_any_kind_are_added_up(members: list[Mapping[str, np.ndarray]]) -> None:
    parts = zip(gradients(0), gradients(1), strict=True)

    expected = [sum(part.to_dense().numpy() for part in pair if part is not None) for pair in parts]

    for found_RD, expected_RD in zip(members[0]["added"], expected, strict=True):
        np.testing.assert_array_equal(found_RD, np.broadcast_to(expected_RD, found_RD.shape))


def test_restraints_are_refused_with_several_processes() -> None:
    class Pair(Crew):
        size = 2

    settings = TrainerSettings(distillation=1.0)

    Learner(ModelSettings(), settings, crew=ALONE)
    with pytest.raises(ValueError, match="without torchrun"):
        Learner(ModelSettings(), settings, crew=Pair())
