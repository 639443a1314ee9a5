"""What holds a learner to what was accepted: each way costs nothing where nothing moved, and survives a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import model.sasrec
from model.catalogue import PADDING
from model.losses import Positions
from model.native.functions import kernels
from model.settings import ModelSettings
from stream.examples import ExampleId
from tests.trainer.clicks import click, clicks, in_batches
from trainer.batch import Stretch, collate
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.newcomers import MOST_NEIGHBOURS, neighbours_of
from trainer.publish import write
from trainer.remembering import Seen
from trainer.restraints import restraints_of
from trainer.settings import TrainerSettings
from trainer.state import resume, tensors_of
from trainer.step import targets_of
from trainer.teacher import Teacher, divergence

MODEL = ModelSettings(max_length=8, units=16, blocks=1, dropout=0.0)
TRAINER = TrainerSettings(negatives=16, learning_rate=0.01, min_context=4, replay_users=10, accept_examples=60)
WAYS: dict[str, dict[str, object]] = {
    "teacher": {"distillation": 1.0},
    "anchor": {"consolidation": 10.0},
    "herding": {"replay_choice": "herding"},
    "per item": {"replay_choice": "per_item"},
    "all": {"distillation": 0.5, "consolidation": 1.0, "replay_choice": "herding", "new_rows": "neighbours"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["native", "torch"])
def _computes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(model.sasrec, "runs_natively", lambda *_, **__: False)
    elif kernels() is None:
        pytest.skip("no native kernels: there is no C++ compiler, or SASREC_NATIVE is off")


def with_way(name: str) -> TrainerSettings:
    return TrainerSettings.model_validate(TRAINER.model_dump() | WAYS[name])


def learnt(settings: TrainerSettings, count: int = 120) -> Learner:
    learner = Learner(MODEL, settings)
    for batch in in_batches(clicks(count, users=8, items=20), 15):
        learner.learn(batch)
    return learner


def cost(learner: Learner) -> float:
    """Of the restraints, for what the learner is reminded of."""
    return cost_of(learner, learner.reminded(8))


def cost_of(learner: Learner, stretches: list[Stretch], *, live_N: Tensor | None = None) -> float:
    """The same, where it is reminded of these, and where only these rows hold items."""
    micro = learner.micro((), stretches)
    hidden_PD, target_P, weight_P = (
        torch.cat(parts)
        for parts in zip(*(targets_of(learner.network, group, None) for group in micro.replayed), strict=True)
    )
    positions = Positions(
        hidden_PD=hidden_PD,
        target_P=target_P,
        weight_P=weight_P,
        item_RD=learner.network.item_RD,
        size=learner.catalogue.size,
        live_N=live_N,
    )
    seen = Seen(positions, micro.replayed, micro.replayed)
    costs = [restraint.cost(learner.network, seen, rng=learner.rng) for restraint in learner.restraints]
    return sum(float(cost.detach()) for cost in costs if cost is not None)


def test_by_default_nothing_is_held_on_to() -> None:
    assert restraints_of(TrainerSettings(), MODEL) == []


@pytest.mark.parametrize("name", ["teacher", "anchor"])
def test_what_was_accepted_costs_nothing_and_moving_away_costs(name: str) -> None:
    learner = learnt(with_way(name))

    learner.accept()
    at_first = cost(learner)
    with torch.no_grad():
        learner.network.item_RD[1:] += 0.3 * torch.randn(learner.network.item_RD[1:].shape)

    assert at_first == pytest.approx(0.0, abs=1e-5)
    assert cost(learner) > 100 * abs(at_first) + 1e-4


def test_nothing_is_held_on_to_before_anything_was_accepted() -> None:
    learner = Learner(MODEL, with_way("all").model_copy(update={"accept_examples": 10_000}))
    for batch in in_batches(clicks(60, users=8, items=20), 15):
        learner.learn(batch)

    assert cost(learner) == 0.0
    assert all(not restraint.tensors() for restraint in learner.restraints)


@pytest.mark.parametrize("name", ["teacher", "anchor"])
def test_a_row_that_was_given_to_another_item_is_free(name: str) -> None:
    learner = learnt(with_way(name))
    learner.accept()
    with torch.no_grad():
        learner.network.item_RD[3] += 1.0
    before = cost(learner)

    for restraint in learner.restraints:
        restraint.forget(np.array([3]))

    assert 0.0 <= cost(learner) < before


def test_an_item_that_is_gone_is_not_compared() -> None:
    learner = learnt(with_way("teacher"))
    learner.accept()
    gone = learner.catalogue.size - 1
    live_N = torch.arange(1, gone)
    reminded = [Stretch(tuple(map(learner.catalogue.item_of, (1, 2, 3))), (1.0,))]
    with torch.no_grad():
        learner.network.item_RD[gone] += 1.0

    assert cost_of(learner, reminded) > 1e-5
    assert cost_of(learner, reminded, live_N=live_N) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.usefixtures("_computes")
@pytest.mark.parametrize("name", ["teacher", "anchor"])
def test_items_that_came_after_acceptance_are_replayed_like_others(name: str) -> None:
    settings = with_way(name).model_copy(update={"replay_users": 50, "accept_examples": 10_000_000})
    learner = learnt(settings)
    learner.accept()
    before = clicks(120, users=8, items=20)
    after = [
        click(
            ExampleId("clicks", 0, 1_000 + n, 0),
            f"late-{n % 10}",
            [f"new-{(n + m) % 40}" for m in range(5)],
            f"new-{n * 7 % 40}",
        )
        for n in range(60)
    ]

    learning = [learner.learn(batch) for batch in in_batches([*after, *before], 10)]

    assert [one.stepped.fault for one in learning] == [None] * len(learning)
    assert all(not one.refused for one in learning)


@pytest.mark.usefixtures("_computes")
@pytest.mark.parametrize("newcomer", ["a new row", "the row of another item"])
def test_what_becomes_of_an_item_that_came_after_acceptance_costs_nothing(newcomer: str) -> None:
    learner = Learner(MODEL, TRAINER.model_copy(update={"distillation": 1.0, "max_items": 5}))
    learner.admit(["a", "b", "c", "d"] + ["old"] * (newcomer == "the row of another item"))
    with torch.no_grad():
        learner.network.item_RD[1:] = torch.randn(
            learner.network.item_RD[1:].shape, generator=torch.Generator().manual_seed(1)
        )
    learner.accept()
    for item_id in ("a", "b", "c", "d"):
        learner.catalogue.admit(item_id)
    learner.admit(["taker"])
    replayed = [
        Stretch(("taker", "a", "taker", "b"), (1.0, 1.0, 1.0)),
        Stretch(("a", "b", "c", "taker", "d"), (1.0, 1.0, 1.0, 1.0)),
    ]

    with torch.no_grad():
        learner.network.item_RD[learner.catalogue.row_of("taker")] = 3.0
    nothing = cost_of(learner, replayed)
    with torch.no_grad():
        learner.network.item_RD[learner.catalogue.row_of("a")] = 0.0

    assert nothing == pytest.approx(0.0, abs=1e-6)
    assert cost_of(learner, replayed) > 1e-3


@pytest.mark.usefixtures("_computes")
def test_the_teacher_answers_up_to_the_first_item_that_it_does_not_know() -> None:
    learner = learnt(with_way("teacher"))
    learner.accept()
    learner.admit(["late"])
    (teacher,) = learner.restraints
    assert isinstance(teacher, Teacher)
    (group,) = collate(
        [Stretch(("item-1", "item-2", "item-3", "late", "item-4", "item-5"), (1.0,) * 5)], learner.catalogue.rows_of
    )

    answers = teacher.answers([group])

    assert answers.given_P.tolist() == [True, True, True, False, False]
    assert torch.equal(answers.hidden_AD, learner.network.states_at(group.row_BT, group.target_BT != PADDING)[:3])


@pytest.mark.parametrize("name", ["teacher", "anchor"])
def test_a_restrained_learner_forgets_less_of_what_is_not_seen_any_more(name: str) -> None:
    old, new = clicks(200, users=8, items=12, seed=1), clicks(150, users=8, items=12, seed=2)
    turned = list(in_batches(list(reversed(new)), 10))
    moved = {}
    for settings in (TRAINER, with_way(name)):
        learner = Learner(MODEL, settings.model_copy(update={"accept_examples": 10_000}))
        for batch in in_batches(old, 10):
            learner.learn(batch)
        learner.accept()
        before = predictions(learner)
        for batch in turned:
            learner.learn(batch)
        moved[settings] = float(divergence(before, predictions(learner)))

    free, held = moved.values()
    assert held < free


def predictions(learner: Learner) -> Tensor:
    rows = torch.from_numpy(learner.catalogue.rows_of([f"item-{number}" for number in range(12)]))
    with torch.no_grad():
        return learner.network.encode_last(rows[:, None]) @ learner.network.item_RD[rows].T


@pytest.mark.parametrize("name", sorted(WAYS))
def test_killed_and_resumed_every_way_ends_in_the_bytes_of_an_undisturbed_run(name: str, tmp_path: Path) -> None:
    settings, batches = with_way(name), list(in_batches(clicks(180, users=14, items=25), 15))
    undisturbed, killed = Learner(MODEL, settings), Learner(MODEL, settings)
    for batch in batches:
        undisturbed.learn(batch)

    for batch in batches[:7]:
        killed.learn(batch)
    resumed = resume(write(killed, Cut(), root=tmp_path, lineage="lineage", version=1).path, settings).learner
    for batch in batches[7:]:
        resumed.learn(batch)

    assert bytes_of(resumed) == bytes_of(undisturbed)
    assert resumed.replay == undisturbed.replay


def bytes_of(learner: Learner) -> dict[str, bytes]:
    return {
        f"{file}/{name}": tensor.contiguous().numpy().tobytes()
        for file, tensors in tensors_of(learner).items()
        for name, tensor in tensors.items()
    }


def test_a_new_row_begins_among_its_neighbours() -> None:
    settings = TRAINER.model_copy(update={"new_rows": "neighbours"})
    learner = Learner(MODEL, settings)
    learner.admit(["a", "b", "c", "far"])
    with torch.no_grad():
        learner.network.item_RD[1:5] = torch.randn(4, MODEL.units)

    learner.admit(["new"], sequences=[("far", "x", "y", "a", "new", "b")])

    item_RD, row_of = learner.network.item_RD.detach(), learner.catalogue.row_of
    mean_D = (item_RD[row_of("a")] + item_RD[row_of("b")]) / 2
    likeness = torch.cosine_similarity(item_RD[row_of("new")], mean_D, dim=0)
    assert float(likeness) > 0.9


def test_neighbours_are_known_items_near_by_and_not_too_many() -> None:
    sequences = [("a", "b", "new", "c", "d", "e"), ("new", "other new", "f")] + [("g", "new")] * 50

    found = neighbours_of(["new", "other new", "alone"], sequences)

    assert found["new"][:5] == ["a", "b", "c", "d", "f"]
    assert len(found["new"]) == MOST_NEIGHBOURS
    assert found["other new"] == ["f"]
    assert "alone" not in found
