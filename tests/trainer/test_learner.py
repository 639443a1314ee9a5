"""One path for every example; killed and resumed, it ends in the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from model.catalogue import PADDING
from model.full_softmax import fastest_products
from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from tests.trainer.clicks import click, clicks, in_batches
from trainer.batch import Stretch
from trainer.cut import Cut
from trainer.exposure import Exposure
from trainer.learner import Learner
from trainer.publish import write
from trainer.settings import TrainerSettings
from trainer.state import read_cut, resume, tensors_of
from trainer.step import Micro
from trainer.weights import Weigher, Weights

MODEL = ModelSettings(max_length=8, units=16, blocks=1)
TRAINER = TrainerSettings(
    negatives=16,
    learning_rate=0.01,
    min_context=4,
    replay_users=10,
    popular_half_life=100.0,
    metric_window=200,
    metric_window_seconds=1e9,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def bytes_of(learner: Learner) -> dict[str, bytes]:
    return {
        f"{file}/{name}": tensor.contiguous().numpy().tobytes()
        for file, tensors in tensors_of(learner).items()
        for name, tensor in tensors.items()
    }


def test_what_comes_next_is_learnt_in_one_pass_better_than_popularity_foresees_it() -> None:
    learner = Learner(MODEL, TRAINER)

    for batch in in_batches(clicks(4_000, users=40, items=60), 50):
        learner.learn(batch)

    ours, popular = learner.prequential.moving("sasrec"), learner.prequential.moving("popular")
    assert ours.hr10 > 0.9 > popular.hr10
    assert learner.examples_trained == 4_000
    assert len(learner.catalogue) == 60


@settings(max_examples=8)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8), killed_after=st.integers(0, 7))
def test_a_learner_that_was_killed_and_resumed_ends_in_the_bytes_of_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], killed_after: int
) -> None:
    root = tmp_path_factory.mktemp("checkpoints")
    examples = served_clicks(sum(sizes))
    ends = np.cumsum(sizes).tolist()
    batches = [examples[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    undisturbed, killed = Learner(MODEL, TRAINER), Learner(MODEL, TRAINER)
    for batch in batches:
        undisturbed.learn(batch)

    for batch in batches[:killed_after]:
        killed.learn(batch)
    written = write(killed, Cut(), root=root, lineage="lineage", version=1)
    resumed = resume(written.path, TRAINER).learner
    for batch in batches[killed_after:]:
        resumed.learn(batch)

    assert bytes_of(resumed) == bytes_of(undisturbed)
    assert resumed.replay == undisturbed.replay
    assert resumed.random_state() == undisturbed.random_state()
    assert resumed.catalogue.to_document() == undisturbed.catalogue.to_document()


def test_auto_learns_with_the_fastest_products_of_the_device() -> None:
    fastest = str(fastest_products(torch.device("cpu"))).removeprefix("torch.")
    learners = [Learner(MODEL, TRAINER.model_copy(update={"softmax_products": kind})) for kind in ("auto", fastest)]

    for learner in learners:
        learner.learn(clicks(60, users=5))

    assert bytes_of(learners[0]) == bytes_of(learners[1])


def test_weights_that_decay_end_nearer_to_zero() -> None:
    lengths = []
    for decay in (0.0, 1.0):
        learner = Learner(MODEL, TRAINER.model_copy(update={"weight_decay": decay}))
        for batch in in_batches(clicks(200), size=20):
            learner.learn(batch)
        lengths.append(float(learner.network.item_RD.detach().norm()))

    kept, decayed = lengths

    assert decayed < 0.98 * kept


def test_what_is_replayed_is_bounded_whatever_the_micro_batch() -> None:
    learner = Learner(MODEL, TRAINER.model_copy(update={"replay_positions": 20, "replay_users": 1_000}))
    learner.learn(clicks(600, users=100))

    positions = [sum(len(stretch.weights) for stretch in learner.replayed(users)) for users in (1, 4, 100)]

    assert 0 < positions[0] <= positions[2] <= 20
    assert len(Learner(MODEL, learner.settings).replayed(5)) == 0


def test_a_users_run_of_clicks_is_remembered_as_click_by_click() -> None:
    examples = clicks(400, users=6, items=30)
    together, apart = Learner(MODEL, TRAINER), Learner(MODEL, TRAINER)

    for batch in in_batches(examples, 50):
        together.learn(batch)
    for example in examples:
        apart.learn([example])

    assert together.replay.stretches == apart.replay.stretches


class Listening(Learner):
    """Keeps what it was given to learn."""

    def micro(self, stretches: Sequence[Stretch], replayed: Sequence[Stretch]) -> Micro:
        self.heard = list(stretches)
        return super().micro(stretches, replayed)


def test_only_where_the_history_is_that_of_the_request_does_a_click_carry_its_weight() -> None:
    learner = Listening(MODEL, TRAINER.model_copy(update={"propensity_cap": 100.0, "position_bias": 0.0}))
    first, second, third = (
        click(ExampleId("clicks", 0, offset, 0), "u", "abcd"[: offset + 1], "bcde"[offset]) for offset in range(3)
    )
    served = Served("p", "r", 0, 0.1, "exact", "exploit")

    learner.learn([replace(first, served=served), replace(second, served=replace(served, clicks_since=1)), third])

    assert learner.heard == [Stretch(tuple("abcd"), (1.0, 0.0, 1.0)), Stretch(tuple("ac"), (1.0,))]
    assert learner.reminded(1) == [Stretch(tuple("abcd"), (1.0, 1.0, 0.0, 1.0))]


def test_what_was_shown_lately_stands_in_the_checkpoint(tmp_path: Path) -> None:
    learner = Learner(MODEL, TRAINER)
    items = tuple(
        ShownItem(item, slot, 0.5, "exact", "explore", None, clicked=not slot) for slot, item in enumerate("bc")
    )
    learner.learn([SlateExample(ExampleId("impressions", 0, 0, 0), "u", ("a",), "r", "p", items, 1, 1)])

    written = write(learner, Cut(), root=tmp_path, lineage="lineage", version=1)

    assert learner.slots.slates == 1
    assert resume(written.path, TRAINER).learner.slots == learner.slots


def test_the_cut_stands_in_the_checkpoint(tmp_path: Path) -> None:
    cut = Cut(offsets={0: 7, 1: 3}, marks={"clicks": {0: (6, 0)}})

    written = write(Learner(MODEL, TRAINER), cut, root=tmp_path, lineage="lineage", version=1)

    assert read_cut(written.path) == cut


def test_an_item_unknown_so_far_is_a_miss_and_is_foreseen_once_it_was_learnt() -> None:
    learner = Learner(MODEL, TRAINER)
    once = [click(ExampleId("clicks", 0, 0, 0), "u", ["a", "b"], "c")]

    learner.learn(once)
    learner.learn(once)

    assert learner.prequential.cumulative("sasrec").hr10 == 0.5
    assert learner.prequential.cumulative("popular").hr10 == 0.5


def test_a_click_of_a_user_without_history_teaches_popularity_only() -> None:
    learner = Learner(MODEL, TRAINER)

    learner.learn([click(ExampleId("clicks", 0, 0, 0), "u", [], "a")])

    assert learner.optimiser.steps == 0
    assert learner.catalogue.click_counts()[learner.catalogue.row_of("a")] == 1


def test_a_slate_teaches_that_the_clicked_item_was_liked_better_than_what_stood_beside_it() -> None:
    learner = Learner(MODEL, TRAINER)
    learner.admit(["a", "liked", "ignored", "unseen"])
    before = scores(learner, "a", ["liked", "ignored", "unseen"])

    for _ in range(20):
        learner.learn([slate("a", clicked="liked", ignored="ignored", unseen="unseen")])

    after = scores(learner, "a", ["liked", "ignored", "unseen"])
    change = after - before
    assert change[0] > 0 > change[1]
    assert abs(change[2] - change[[0, 1]].mean()) < change[0] - change[1]


def test_a_slate_without_a_click_changes_no_weight() -> None:
    learner = Learner(MODEL, TRAINER)
    learner.admit(["a", "x", "y"])

    learner.learn([slate("a", clicked=None, ignored="x", unseen="y")])

    assert learner.optimiser.steps == 0


class PoisonedWeigher(Weigher):
    """Gives the clicks of one user a weight that no step survives."""

    def weigh(self, clicks: Sequence[ClickExample], *, exposure: Exposure) -> Weights:
        weights = super().weigh(clicks, exposure=exposure)
        poisoned_N = np.array([click.user_id == "user-3" for click in clicks], dtype=np.bool_)
        return weights._replace(weight_N=np.where(poisoned_N, math.inf, weights.weight_N))


def test_examples_that_are_not_finite_are_given_back_and_all_others_are_learnt() -> None:
    learner, examples = Learner(MODEL, TRAINER.model_copy(update={"replay_share": 0.0})), clicks(60, users=5)
    learner.learn(examples[:30])
    learner.weigher = PoisonedWeigher(TRAINER)
    before = learner.optimiser.steps

    learnt = learner.learn(examples[30:])

    poison = [example for example in examples[30:] if example.user_id == "user-3" and example.context]
    assert poison
    assert sorted((one.example for one in learnt.refused), key=lambda one: one.id) == poison
    assert {one.fault for one in learnt.refused} == {"not_finite"}
    assert learner.optimiser.steps > before
    assert all(bool(torch.isfinite(weight).all()) for weight in learner.network.parameters())


class LoudWeigher(Weigher):
    """Gives the clicks of one user a weight that makes the loss spike; finite, so that every step would take it."""

    def weigh(self, clicks: Sequence[ClickExample], *, exposure: Exposure) -> Weights:
        weights = super().weigh(clicks, exposure=exposure)
        loud_N = np.array([click.user_id == "user-3" for click in clicks], dtype=np.bool_)
        return weights._replace(weight_N=np.where(loud_N, 1e6, weights.weight_N))


def test_a_spike_is_noticed_and_a_wary_learner_refuses_exactly_what_makes_it() -> None:
    examples = clicks(1_060, users=5)
    learner = Learner(MODEL, TRAINER.model_copy(update={"replay_share": 0.0}))
    quiet = [learner.learn(batch).z_score for batch in in_batches(examples[:1_000], 20)]
    learner.weigher = LoudWeigher(TRAINER)
    loud = [one for one in examples[1_030:] if one.user_id == "user-3"]

    noticed = learner.learn(examples[1_000:1_030])
    learnt = learner.learn(examples[1_030:], mode="wary")

    assert max(quiet) <= TRAINER.spike_z_score < noticed.z_score
    assert loud
    assert [one.example for one in learnt.refused] == loud
    assert {one.fault for one in learnt.refused} == {"spike"}
    assert learnt.trained == 30 - len(loud)


def test_a_bot_teaches_no_more_than_its_share_of_a_window_and_everybody_else_all() -> None:
    learner = Learner(MODEL, TRAINER.model_copy(update={"flood_window": 100, "user_flood_share": 0.1}))
    crowd = clicks(60, users=12)
    bot = [
        click(ExampleId("impressions", 0, place, 0), "bot", ["item-1", "item-2"], f"item-{place}")
        for place in range(3, 30)
    ]

    learnt = learner.learn([*crowd, *bot])

    assert learnt.flooded == {"user_flood": 27 - 10}
    assert learnt.trained == learner.examples_trained == 70
    assert int(learner.catalogue.click_counts().sum()) == 70


class PoisonWeigher(Weigher):
    """Clicks on one item make the loss spike."""

    def weigh(self, clicks: Sequence[ClickExample], *, exposure: Exposure) -> Weights:
        weights = super().weigh(clicks, exposure=exposure)
        loud_N = np.array([click.item_id == "poison" for click in clicks], dtype=np.bool_)
        return weights._replace(weight_N=np.where(loud_N, 1e6, weights.weight_N))


UNTAUGHT: dict[str, Served | None] = {
    "spiking": None,
    "flooded": None,
    "pinned": Served("editors", "slate", 0, None, "none", "fixed"),
    "without the propensity that was promised": Served("ours", "slate", 0, None, "exact", "exploit"),
}


@pytest.mark.parametrize("how", UNTAUGHT)
def test_a_click_that_taught_nothing_stays_in_the_history_and_is_never_taught_by_replay(how: str) -> None:
    window = 100
    learner = Learner(MODEL, TRAINER.model_copy(update={"flood_window": window, "replay_positions": 200}))
    for batch in in_batches(clicks(10 * window, users=5), 20):
        learner.learn(batch)
    learner.weigher = PoisonWeigher(TRAINER) if how == "spiking" else learner.weigher
    items = ["a", "b", "c", "d", "poison", "e", "f"]
    mine = [
        click(
            ExampleId("clicks", 1, place, 0),
            "me",
            items[:place],
            item,
            served=UNTAUGHT[how] if item == "poison" else None,
        )
        for place, item in enumerate(items)
    ]
    crowd = clicks(4 * window, users=5, first_offset=10_000)
    if how == "flooded":
        learner.settings = learner.settings.model_copy(update={"user_flood_share": 4 / window})

    learner.learn(mine[:3])
    learnt = learner.learn([mine[3], mine[4], *crowd[:10]], mode="wary")
    learner.settings = learner.settings.model_copy(update={"user_flood_share": 1.0})
    learner.learn(crowd[10:window])
    learner.learn([mine[5], *crowd[window : window + 10]])
    learner.learn([mine[6]])

    assert [one.example for one in learnt.refused] == [mine[4]] * (how == "spiking")
    assert learnt.flooded == ({"user_flood": 1} if how == "flooded" else {})
    remembered, weights = learner.replay.stretches["me"]
    assert remembered == tuple(items)
    assert [item for item, weight in zip(remembered, weights, strict=True) if weight > 0.0] == [*"abcd", *"ef"]
    (group,) = learner.micro((), learner.reminded(10)).groups
    assert learner.catalogue.row_of("e") in group.target_BT
    assert learner.catalogue.row_of("poison") not in group.target_BT[group.target_BT != PADDING]


def test_new_items_find_room_when_the_table_is_full_and_inherit_nothing() -> None:
    learner = Learner(MODEL, TRAINER.model_copy(update={"max_items": 5}))
    learner.learn([click(ExampleId("clicks", 0, 0, 0), "u", ["a", "b", "c", "d"], "e")])
    row = learner.catalogue.row_of("a")

    learner.learn([click(ExampleId("clicks", 0, 1, 0), "v", ["b"], "new")])

    assert learner.catalogue.row_of("a") == 0
    assert learner.catalogue.row_of("new") == row
    assert len(learner.catalogue) == 5


@pytest.mark.parametrize("loss", ["bpr", "cross_entropy", "gbce", "sampled_softmax"])
def test_what_stands_in_rows_whose_items_are_gone_moves_nothing(loss: str) -> None:
    tables = []
    for left in (0.0, 9.0):
        learner = Learner(MODEL, TRAINER.model_copy(update={"loss": loss}))
        learner.learn([click(ExampleId("clicks", 0, 0, 0), "u", ["a", "b", "c", "d", "e"], "f")])
        gone = learner.catalogue.rows_of(["a", "b"])
        for item in ("a", "b"):
            learner.catalogue.retire(item)
        with torch.no_grad():
            learner.network.item_RD[torch.from_numpy(gone)] = left
        learner.replay = Learner(MODEL, TRAINER).replay

        learnt = learner.learn([click(ExampleId("clicks", 0, 1, 0), "v", ["c", "d"], "e")])

        assert learnt.trained == 1
        tables.append(learner.network.item_RD.detach()[torch.from_numpy(learner.catalogue.live_rows())])

    assert torch.equal(*tables)


def served_clicks(count: int) -> list[ClickExample]:
    """Half of them served, with propensities of their own."""
    rng = np.random.default_rng(5)
    made = []
    for example in clicks(count, users=8, items=20):
        propensity = float(rng.uniform(0.01, 1.0))
        how = Served("softmax", "r", int(rng.integers(10)), propensity, "exact", "exploit")
        served = how if rng.random() < 0.5 else None
        made.append(
            click(
                example.id, example.user_id, example.context, example.item_id, at_ms=example.timestamp_ms, served=served
            )
        )
    return made


def scores(learner: Learner, last: str, item_ids: list[str]) -> np.ndarray:
    hidden_BD = learner.network.encode_last(torch.from_numpy(learner.catalogue.rows_of([last]))[None])
    item_CD = learner.network.item_RD.detach()[torch.from_numpy(learner.catalogue.rows_of(item_ids))]
    score_C: np.ndarray = (hidden_BD @ item_CD.T)[0].numpy()
    return score_C


def slate(context: str, *, clicked: str | None, ignored: str, unseen: str) -> SlateExample:
    items = (
        *([ShownItem(clicked, 0, 0.5, "exact", "exploit", seen=True, clicked=True)] if clicked else []),
        ShownItem(ignored, 1, 0.5, "exact", "exploit", seen=True, clicked=False),
        ShownItem(unseen, 2, 0.5, "exact", "exploit", seen=False, clicked=False),
    )
    return SlateExample(
        id=ExampleId("impressions", 0, 0, 0),
        user_id="u",
        context=(context,),
        request_id="r",
        policy="softmax",
        items=items,
        timestamp_ms=1_700_000_000_000,
        arrived_at_ms=1_700_000_000_000,
    )
