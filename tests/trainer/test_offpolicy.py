"""Who merely foresees what is clicked because it was served does not pass the gate; who knows the taste does.

One world with known truth: a logger that prefers bad items served slates, and people clicked what they liked of them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from model.checkpoint import ServingModel, read_serving
from model.policies import Shortlist, Slate, eligible_without, softmax
from model.settings import ModelSettings, PolicySettings
from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from trainer.cut import Cut
from trainer.gate import Log, Rules, judge, ndcg_per_click
from trainer.learner import Learner
from trainer.offpolicy import chances, compared, impressions_of, looked_at, served_after
from trainer.publish import write
from trainer.settings import GateSettings, TrainerSettings

ITEMS, SLATE, REQUESTS = 30, 5, 800
BEFORE = "before"
"""What everybody has."""
POLICY = PolicySettings(slate_size=SLATE, exploration_slots=1, temperature=1.0, candidates=ITEMS)
FLAT = TrainerSettings(position_bias=0.0)
RULES = Rules(GateSettings(min_events=100), POLICY, FLAT)


class World(NamedTuple):
    liking_N: np.ndarray
    slates: list[SlateExample]
    clicks: list[ClickExample]


@functools.cache
def world() -> World:
    rng = np.random.default_rng(3)
    liking_N = np.exp(np.linspace(np.log(0.03), np.log(0.6), ITEMS))
    preference_N = -0.8 * np.log(liking_N) + rng.normal(0.0, 0.5, ITEMS)
    row_N = np.arange(1, ITEMS + 1)
    eligible = eligible_without(np.empty(0, dtype=np.int64), row_N=row_N, live_R=np.arange(ITEMS + 1) > 0)
    drawn = softmax(1.0).draw_many(Shortlist(row_N, preference_N, eligible), slate_size=SLATE, count=REQUESTS, rng=rng)
    clicked_SK = rng.random(drawn.row_K.shape) < liking_N[drawn.row_K - 1]
    slates = [slate(number, drawn, clicked_SK[number]) for number in range(REQUESTS)]
    clicks = [click(one, item) for one in slates for item in one.items if item.clicked]
    return World(liking_N, slates, clicks)


def slate(number: int, drawn: Slate, clicked_K: np.ndarray) -> SlateExample:
    items = tuple(
        ShownItem(name(row), None, float(propensity), "exact", "exploit", None, clicked=bool(clicked))
        for row, propensity, clicked in zip(drawn.row_K[number], drawn.propensity_K[number], clicked_K, strict=True)
    )
    return SlateExample(ExampleId("impressions", 0, number, 0), "u", (BEFORE,), "r", "logger", items, number, number)


def click(slate: SlateExample, item: ShownItem) -> ClickExample:
    how = Served(slate.policy, slate.request_id, item.position, item.propensity, "exact", item.source)
    return ClickExample(slate.id, slate.user_id, slate.context, item.item_id, slate.timestamp_ms, 1, how)


def name(row: int) -> str:
    return f"item-{row - 1}"


def believing(root: Path, score_N: np.ndarray, *, lineage: str) -> ServingModel:
    """A model that gives every user the same scores."""
    learner = Learner(ModelSettings(max_length=4, units=2, blocks=0, dropout=0.0), TrainerSettings())
    learner.admit([*(name(row) for row in range(1, ITEMS + 1)), BEFORE])
    with torch.no_grad():
        weights = dict(learner.network.named_parameters())
        weights["final_norm.weight"].zero_()
        weights["final_norm.bias"].copy_(torch.tensor([1.0, 0.0]))
        learner.network.item_RD[1 : ITEMS + 1, 0] = torch.from_numpy(score_N).float()
    return read_serving(write(learner, Cut(), root=root, lineage=lineage, version=1).path)


class Models(NamedTuple):
    naive: ServingModel
    """Believes what is clicked: how often it was served, times how much it is liked."""
    knowing: ServingModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("checkpoints")
    clicked_N = np.zeros(ITEMS)
    for one in world().clicks:
        clicked_N[int(one.item_id.removeprefix("item-"))] += 1
    naive_N, knowing_N = np.log(clicked_N + 1), np.log(world().liking_N)
    return Models(
        believing(root, naive_N - naive_N.mean(), lineage="naive"),
        believing(root, 2 * (knowing_N - knowing_N.mean()), lineage="knowing"),
    )


def test_clicks_as_they_come_are_foreseen_best_by_who_repeats_what_is_served(models: Models) -> None:
    """The trap that the two tests below are about."""
    naive, knowing = (ndcg_per_click(one, world().clicks).mean() for one in models)

    assert naive > knowing + 0.02


def test_who_repeats_what_is_served_does_not_replace_who_knows_the_taste(models: Models) -> None:
    verdict = judge(models.knowing, models.naive, Log(world().clicks, world().slates), RULES)

    assert verdict.status == "rejected"
    assert verdict.compared is not None
    assert verdict.compared.difference.high < 0.0
    assert "it would have earned" in verdict.reason


def test_who_knows_the_taste_replaces_who_repeats_what_is_served(models: Models) -> None:
    verdict = judge(models.naive, models.knowing, Log(world().clicks, world().slates), RULES)

    assert verdict.status == "promoted"


def test_who_foresees_better_and_would_earn_less_is_rejected(models: Models) -> None:
    """Clicks that nobody served, and slates that say that their taste is another one."""
    organic = [msgspec.structs.replace(one, served=None) for one in world().clicks]

    without = judge(models.knowing, models.naive, Log(organic), RULES)
    beside = judge(models.knowing, models.naive, Log(organic, world().slates), RULES)

    assert (without.status, beside.status) == ("promoted", "rejected")


def test_too_few_slates_reject_nobody(models: Models) -> None:
    organic = [msgspec.structs.replace(one, served=None) for one in world().clicks]

    verdict = judge(models.knowing, models.naive, Log(organic, world().slates[:20]), RULES)

    assert verdict.status == "promoted"
    assert "too few to say" in verdict.reason


def test_an_estimate_holds_the_truth(models: Models) -> None:
    """The truth: the mean liking of what each model's own slates show."""
    found = compared(*models, world().slates, policy=POLICY, position_bias=0.0, confidence=0.99)

    for serving, estimate in zip(models, (found.champion, found.challenger), strict=True):
        every = slate_of_all()
        chance_N = chances(serving, [every] * 50, policy=POLICY).mean(axis=0)
        truth = float(chance_N @ world().liking_N / chance_N.sum())
        assert estimate.low < truth < estimate.high
    assert found.difference.value == pytest.approx(found.challenger.value - found.champion.value)


def slate_of_all() -> SlateExample:
    """Asks for the chance of every item, in a slate of `SLATE`: `chances` takes the size from the policy."""
    items = tuple(
        ShownItem(name(row), None, 0.5, "exact", "exploit", None, clicked=False) for row in range(1, ITEMS + 1)
    )
    return SlateExample(ExampleId("impressions", 0, 0, 0), "u", (BEFORE,), "r", "logger", items, 1, 1)


def test_the_chances_of_all_items_add_up_to_the_slate(tmp_path: Path) -> None:
    logger = believing(tmp_path, np.linspace(-1.0, 1.0, ITEMS), lineage="logger")

    chance_SK = chances(logger, [slate_of_all()] * 64, policy=POLICY)

    np.testing.assert_allclose(chance_SK.sum(axis=1).mean(), SLATE, rtol=0.01)


def test_only_slates_count_that_were_served_after_training_and_each_once() -> None:
    first, second, third = world().slates[:3]
    correction = msgspec.structs.replace(third, correction=True)
    unknown = msgspec.structs.replace(third, context=())

    assert served_after([first, second, correction, unknown], second.timestamp_ms) == []
    assert served_after([first, second, third], second.timestamp_ms) == [third]


def test_a_click_counts_more_where_few_look() -> None:
    """Half of those who got the slate saw slot 1: its click stands for two."""
    slates = [slate_seen(first=True, second=number % 2 == 0) for number in range(400)]

    by_position = looked_at(slates)
    reward_I = impressions_of(slates[:1], position_bias=0.5).reward_I

    assert by_position[0] == pytest.approx(1.0, abs=0.01)
    assert by_position[1] == pytest.approx(0.5, abs=0.01)
    assert reward_I[1] == 0.0
    assert reward_I[0] > 0.0


def slate_seen(*, first: bool, second: bool) -> SlateExample:
    items = tuple(
        ShownItem(name(place + 1), place, 0.5, "exact", "exploit", seen=seen, clicked=place == 0)
        for place, seen in enumerate((first, second))
    )
    return SlateExample(ExampleId("impressions", 0, 0, 0), "u", (BEFORE,), "r", "logger", items, 1, 1)


@pytest.mark.parametrize(
    "how",
    [
        {"propensity": None, "propensity_kind": "none"},
        {"propensity": 0.2, "propensity_kind": "estimated"},
        {"propensity": 1.0, "source": "fixed"},
        {"propensity": 0.0},
    ],
    ids=["unknown", "estimated", "pinned", "no chance"],
)
def test_nothing_is_judged_by_an_item_whose_chance_is_not_known_exactly(how: dict[str, object]) -> None:
    one = slate_seen(first=True, second=True)
    items = (one.items[0], msgspec.structs.replace(one.items[1], **how))

    found = impressions_of([msgspec.structs.replace(one, items=items)], position_bias=0.5)

    assert found.slot_I.tolist() == [0]
