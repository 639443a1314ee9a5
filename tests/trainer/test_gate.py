"""No model goes live worse than the one it replaces (I6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import ServingModel, read_serving
from model.settings import ModelSettings
from tests.trainer.clicks import clicks
from trainer.cut import Cut
from trainer.gate import Log, Rules, decide, is_question, judge
from trainer.learner import Learner
from trainer.publish import write
from trainer.settings import GateSettings, TrainerSettings

GATE = GateSettings(min_events=50)
RULES = Rules(GATE)
MODEL = ModelSettings(max_length=8, units=16, blocks=1, dropout=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def taught(root: Path, *, lineage: str, batches: int, settings: TrainerSettings) -> ServingModel:
    learner = Learner(MODEL, settings)
    for seed in range(batches):
        learner.learn(clicks(200, seed=seed))
    written = write(learner, Cut(), root=root, lineage=lineage, version=1)
    return read_serving(written.path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ServingModel]:
    """One that was hardly taught and one that was taught well."""
    root = tmp_path_factory.mktemp("checkpoints")
    settings = TrainerSettings(learning_rate=0.01, negatives=32)
    return [taught(root, lineage=f"taught-{batches}", batches=batches, settings=settings) for batches in (1, 25)]


def test_a_better_challenger_is_promoted(models: Sequence[ServingModel]) -> None:
    poor, good = models

    verdict = judge(poor, good, Log(clicks(200, seed=1_000)), RULES)

    assert verdict.status == "promoted"
    assert verdict.events == len([one for one in clicks(200, seed=1_000) if is_question(one)])


def test_a_worse_challenger_is_rejected_and_the_reason_is_said(models: Sequence[ServingModel]) -> None:
    poor, good = models

    verdict = judge(good, poor, Log(clicks(200, seed=1_000)), RULES)

    assert verdict.status == "rejected"
    assert "not above" in verdict.reason


def test_a_challenger_that_is_no_better_is_rejected(models: Sequence[ServingModel]) -> None:
    _, good = models

    assert judge(good, good, Log(clicks(200, seed=1_000)), RULES).status == "rejected"


def test_too_few_clicks_decide_nothing(models: Sequence[ServingModel]) -> None:
    poor, good = models

    verdict = judge(poor, good, Log(clicks(40, seed=1_000)), RULES)

    assert verdict.status == "undecided"
    assert "gate.min_events" in verdict.reason


def test_a_click_without_history_or_on_something_the_user_has_is_no_question() -> None:
    first, *_, later = clicks(100, seed=1)

    assert not is_question(first)
    assert is_question(later)


@given(
    gains=st.lists(st.floats(0.0, 1.0), min_size=50, max_size=200),
    losses=st.lists(st.floats(0.0, 0.5), min_size=50, max_size=200),
)
def test_nothing_that_is_worse_on_the_mean_is_ever_promoted(gains: list[float], losses: list[float]) -> None:
    count = min(len(gains), len(losses))
    champion_N = np.array(gains[:count])

    verdict = decide(champion_N, champion_N - np.array(losses[:count]), GATE)

    assert verdict.status == "rejected"


def test_a_tolerance_lets_an_equal_challenger_pass() -> None:
    equal_N = np.full(100, 0.5)

    assert decide(equal_N, equal_N, GateSettings(min_events=50, tolerance=0.01)).status == "promoted"
