"""A slate, explained from what stands in Kafka and on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from deploy.cli.why import readable
from deploy.observe.reading import read_all
from deploy.observe.why import Explanation, again, explain, known_clicks
from deploy.scoring.worker import run_worker
from deploy.settings import ScoringSettings, Settings, StateSettings
from model.checkpoint import WrittenCheckpoint
from stream.clients import producer
from stream.events import Item, Recommendation
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.settings import KafkaSettings
from stream.topics import ITEMS, RECOMMENDATIONS, SEQUENCES

CATALOGUE_ITEMS = tuple(f"item-{number}" for number in range(40))
CLICKED = ("item-3", "item-1", "item-4")
EVENT_MS = 1_700_000_000_000
WriteModel = Callable[..., WrittenCheckpoint]
WaitUntil = Callable[[Callable[[], Any]], Any]


def state_of(*items: str) -> UserState:
    times = times_of(range(EVENT_MS, EVENT_MS + 1_000 * len(items), 1_000))
    offset = len(items) - 1
    return UserState(
        items=items, times=times, clicks_applied=len(items), applied=Applied(offset), click=(0, offset, EVENT_MS)
    )


def send_state(kafka: KafkaSettings, user_id: str, state: UserState) -> None:
    with producer(kafka) as sender:
        sender.send(kafka.topic(SEQUENCES), encode_state(state), key=user_id.encode())


def slate_of(**fields: Any) -> Recommendation:  # noqa: ANN401 - fields of a slate
    whole: dict[str, Any] = {
        "request_id": "r",
        "user_id": "ann",
        "policy": "sasrec",
        "generated_at_ms": EVENT_MS,
        "items": (),
    }
    return Recommendation(**(whole | fields))


@pytest.mark.broker
def test_a_slate_is_explained_by_its_clicks_and_its_own_checkpoint_after_the_user_went_on(
    kafka: KafkaSettings, tmp_path: Path, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    checkpoint = write_model(version=1, items=CATALOGUE_ITEMS)
    settings = Settings(
        kafka=kafka,
        state=StateSettings(directory=tmp_path / "state", checkpoints=str(tmp_path / "checkpoints")),
        scoring=ScoringSettings(checkpoint=str(checkpoint.path)),
    )
    send_state(kafka, "ann", state_of(*CLICKED))
    with producer(kafka) as sender:
        sender.send(kafka.topic(ITEMS), msgspec.json.encode(Item(item_id="item-4", title="Pie")), key=b"item-4")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(run_worker, settings, stop)
        try:
            wait_until(lambda: list(read_all(kafka, RECOMMENDATIONS)))
        finally:
            stop.set()
            worker.result(timeout=60)
    send_state(kafka, "ann", state_of(*CLICKED, "item-9"))

    explanation = explain(kafka, settings.checkpoints, "clicks-0-2")

    assert [click.item_id for click in explanation.clicks] == list(CLICKED)
    assert sum(click.attention or 0.0 for click in explanation.clicks) == pytest.approx(1.0)
    assert (explanation.slate.sequence_position, explanation.forgotten) == (3, 0)
    assert explanation.again.status == "agrees"
    scored = [item for item in explanation.slate.items if item.score is not None]
    assert explanation.again.scores == pytest.approx({item.item_id: item.score for item in scored}, abs=1e-4)
    assert explain(kafka, settings.checkpoints, "clicks-0-2", user_id="ann") == explanation
    lines = "\n".join(readable(explanation, {"item-4": "Pie"}))
    assert "model      first/1" in lines
    assert "-1  Pie" in lines
    assert "at click 3 of this user, 3 items known" in lines
    with pytest.raises(ValueError, match="no slate of request nothing stands on"):
        explain(kafka, settings.checkpoints, "nothing")


def test_only_the_clicks_that_the_slate_knew_are_told() -> None:
    slate = slate_of(sequence_position=3, history_length=3)

    clicks, forgotten = known_clicks(state_of(*CLICKED, "item-9", "item-8"), slate)
    assert ([click.item_id for click in clicks], forgotten) == (list(CLICKED), 0)

    shortened = replace(state_of("item-1", "item-4", "item-9"), clicks_applied=4)
    clicks, forgotten = known_clicks(shortened, slate)
    assert ([click.item_id for click in clicks], forgotten) == (["item-1", "item-4"], 1)

    clicks, forgotten = known_clicks(UserState(), slate)
    assert (clicks, forgotten) == ((), 3)


def test_what_cannot_be_computed_again_says_so(tmp_path: Path, write_model: WriteModel) -> None:
    checkpoints = tmp_path / "checkpoints"
    write_model(version=1, items=CATALOGUE_ITEMS)

    def told(slate: Recommendation) -> Explanation:
        clicks, forgotten = known_clicks(state_of(*CLICKED), slate)
        return again(slate, clicks, forgotten, checkpoints)

    assert told(slate_of(model_version="first/7")).again.status == "gone"
    assert told(slate_of(model_version="another/1")).again.status == "gone"
    assert told(slate_of(model_version="nonsense")).again.status == "gone"
    assert told(slate_of(policy="popular")).again.status == "counted"
    assert told(slate_of(model_version="first/1")).again.status == "agrees"
    assert "is gone" in list(readable(told(slate_of(model_version="first/7")), {}))[-1]
