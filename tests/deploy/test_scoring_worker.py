"""The scoring worker against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer, TopicPartition
from structlog.testing import capture_logs

from deploy.scoring.inputs import Inputs
from deploy.scoring.worker import run_worker
from deploy.settings import ScoringSettings, Settings, StateSettings
from model.checkpoint import CATALOGUE, MANIFEST, MODEL, WrittenCheckpoint
from model.router import Router
from model.settings import ArmSettings, PolicySettings
from stream.clients import admin, consumer, producer
from stream.dead_letters import EXCEPTION
from stream.events import Item, ModelAnnouncement, Recommendation, Request
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, ITEMS, MODELS, RECOMMENDATIONS, REQUESTS, SEQUENCES

pytestmark = pytest.mark.broker

CATALOGUE_ITEMS = tuple(f"item-{number}" for number in range(40))
EVENT_MS = 1_700_000_000_000
SKIPPED = "checkpoint skipped, the old model serves on"

WriteModel = Callable[..., WrittenCheckpoint]
WaitUntil = Callable[[Callable[[], Any]], Any]


class World:
    """What applications, the stream worker and the trainer would write, and what they would read."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self.producer: KafkaProducer = producer(kafka, linger_ms=0)
        self._reader = consumer(kafka)
        topic = kafka.topic(RECOMMENDATIONS)
        self._reader.assign([TopicPartition(topic, number) for number in range(kafka.partitions)])
        self.records: list[Any] = []

    def click(self, user_id: str, offset: int, *items: str) -> None:
        """The state that the stream worker writes after the click at `offset` of `clicks`."""
        times = times_of(range(EVENT_MS, EVENT_MS + 1_000 * len(items), 1_000))
        applied = Applied(clicks=offset)
        state = UserState(
            items=items, times=times, clicks_applied=len(items), applied=applied, click=(0, offset, EVENT_MS)
        )
        self._send(SEQUENCES, user_id, encode_state(state))

    def slates_came_back(self, user_id: str, *items: str) -> None:
        self._send(SEQUENCES, user_id, encode_state(UserState(items=items, times=times_of([EVENT_MS] * len(items)))))

    def request(
        self,
        user_id: str,
        event_id: str,
        *,
        k: int | None = None,
        candidates: tuple[str, ...] | None = None,
        exclude: tuple[str, ...] = (),
        fresh_through_offset: int | None = None,
        wait_ms: int | None = None,
    ) -> None:
        asked = Request(
            event_id=event_id,
            user_id=user_id,
            timestamp_ms=EVENT_MS,
            k=k,
            candidates=candidates,
            exclude=exclude,
            fresh_through_offset=fresh_through_offset,
            wait_ms=wait_ms,
        )
        self._send(REQUESTS, user_id, msgspec.json.encode(asked))

    def announce(self, checkpoint: WrittenCheckpoint) -> None:
        manifest = checkpoint.manifest
        announcement = ModelAnnouncement(
            model="sasrec",
            lineage=manifest.lineage,
            version=manifest.version,
            path=str(checkpoint.path),
            manifest_sha256=checkpoint.manifest_sha256,
            created_at_ms=manifest.created_at_ms,
            examples_trained=manifest.examples_trained,
        )
        self._send(MODELS, "sasrec", msgspec.json.encode(announcement))

    def describe(self, item_id: str, *, available: bool) -> None:
        self._send(ITEMS, item_id, msgspec.json.encode(Item(item_id=item_id, available=available)))

    def withdraw(self, item_id: str) -> None:
        self._send(ITEMS, item_id, None)

    def send_raw(self, name: str, key: bytes, value: bytes | None) -> None:
        self.producer.send(self.kafka.topic(name), value, key=key)

    def slates(self) -> list[Recommendation]:
        """Everything on `recommendations` so far."""
        while arrived := self._reader.poll(timeout_ms=50):
            self.records += [record for records in arrived.values() for record in records]
        return [msgspec.json.decode(record.value, type=Recommendation) for record in self.records]

    def answers(self, *request_ids: str) -> dict[str, Recommendation]:
        """The slates of these requests, once each stands there exactly once."""
        found = [slate for slate in self.slates() if slate.request_id in request_ids]
        return {slate.request_id: slate for slate in found} if len(found) == len(request_ids) else {}

    def ours(self, request_id: str) -> list[bytes]:
        """Raw slates of this request that a scoring worker made."""
        while arrived := self._reader.poll(timeout_ms=50):
            self.records += [record for records in arrived.values() for record in records]
        values = [record.value or b"" for record in self.records]
        return [value for value in values if request_id.encode() in value and b'"seed"' in value]

    def has_more_slates_than(self, number: int) -> bool:
        return len(self.slates()) > number

    def close(self) -> None:
        self.producer.close()
        self._reader.close()

    def _send(self, name: str, key: str, value: bytes | None) -> None:
        self.send_raw(name, key.encode(), value)


@pytest.fixture
def world(kafka: KafkaSettings) -> Iterator[World]:
    with contextlib.closing(World(kafka)) as world:
        yield world


@pytest.fixture
def settings(kafka: KafkaSettings, tmp_path: Path) -> Settings:
    scoring = ScoringSettings(max_batch=32)
    return Settings(kafka=kafka, state=StateSettings(directory=tmp_path / "state"), scoring=scoring)


@contextlib.contextmanager
def running(settings: Settings, *, member: str | None = None) -> Iterator[None]:
    """A worker in a thread, ended cleanly."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(run_worker, settings, stop, member=member)
        try:
            yield
        finally:
            stop.set()
            worker.result(timeout=30)


@contextlib.contextmanager
def process(settings: Settings, member: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which ends in whatever way."""
    source = (
        "import sys, threading; from deploy.settings import Settings; from deploy.scoring.worker import run_worker; "
        "run_worker(Settings.model_validate_json(sys.argv[1]), threading.Event(), member=sys.argv[2])"
    )
    child = subprocess.Popen([sys.executable, "-c", source, settings.model_dump_json(), member])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_click_leads_to_exactly_one_slate_that_names_its_cause(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    with running(settings):
        world.click("ann", 7, "item-1", "item-2")
        slate = wait_until(lambda: world.answers("clicks-0-7"))["clicks-0-7"]
        world.slates_came_back("ann", "item-1", "item-2")
        world.request("ann", "page")
        wait_until(lambda: world.answers("page"))

    assert Counter(one.request_id for one in world.slates()) == {"clicks-0-7": 1, "page": 1}
    assert (slate.user_id, slate.policy, slate.model_version) == ("ann", "sasrec", "first/1")
    assert slate.cause is not None
    assert (slate.cause.topic, slate.cause.offset, slate.cause.arrived_at_ms) == ("clicks", 7, EVENT_MS)
    assert (slate.history_length, slate.eligible_count) == (2, 38)
    assert {"item-1", "item-2"}.isdisjoint(item.item_id for item in slate.items)
    assert all(item.propensity_kind == "exact" for item in slate.items)
    (record,) = [record for record in world.records if b'"clicks-0-7"' in record.value]
    headers = dict(record.headers)
    assert record.key == b"ann"
    assert (headers["ce_id"], headers["ce_specversion"]) == (b"clicks-0-7", b"1.0")
    assert headers["ce_type"] == b"sasrec-stream.recommendation.v1"


def test_a_request_says_how_many_among_which_and_without_which(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    world.click("ann", 0, "item-1")
    world.request("ann", "three", k=3)
    world.request("ann", "among", candidates=("item-1", "item-2", "item-3", "nobody"))
    world.request("ann", "without", k=40, exclude=CATALOGUE_ITEMS[:30])
    world.request("stranger", "unknown")
    with running(settings):
        answers = wait_until(lambda: world.answers("three", "among", "without", "unknown"))

    items = {request_id: {item.item_id for item in slate.items} for request_id, slate in answers.items()}
    assert len(items["three"]) == 3
    assert items["among"] == {"item-2", "item-3"}
    assert items["without"] == set(CATALOGUE_ITEMS[30:])
    assert (answers["unknown"].policy, len(items["unknown"])) == ("popular", 10)
    assert answers["unknown"].cause is not None
    assert answers["unknown"].cause.topic == "requests"


def test_a_request_waits_for_the_click_that_it_names_and_says_when_it_did_not_come(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    patient = settings.scoring.model_copy(update={"max_fresh_wait_ms": 60_000})
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    with running(settings.model_copy(update={"scoring": patient})):
        world.click("ann", 0, "item-1")
        wait_until(lambda: world.answers("clicks-0-0"))
        world.request("ann", "too late", fresh_through_offset=7, wait_ms=1)
        world.request("ann", "known", fresh_through_offset=0)
        world.request("ann", "in time", fresh_through_offset=7)
        before = wait_until(lambda: world.answers("too late", "known"))
        assert not world.answers("in time")
        world.click("ann", 7, "item-1", "item-2")
        after = wait_until(lambda: world.answers("in time"))["in time"]

    assert (before["too late"].is_fresh, before["too late"].sequence_position) == (False, 1)
    assert (before["known"].is_fresh, before["known"].sequence_position) == (True, 1)
    assert (after.is_fresh, after.sequence_position, after.history_length) == (True, 2, 2)


def test_what_others_write_to_recommendations_neither_stops_a_successor_nor_answers_for_it(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    with running(settings, member="the-worker"):
        world.request("ann", "first")
        wait_until(lambda: world.answers("first"))
    foreign = b'{"request_id":"second","user_id":"ann","policy":"acme","generated_at_ms":1700000000000,"items":[]}'
    for value in (b"not json", b"\xff", b"[]", None, foreign):
        world.send_raw(RECOMMENDATIONS, b"ann", value)
    world.request("ann", "second")
    with running(settings, member="the-worker"):
        wait_until(lambda: world.ours("second"))


def test_users_of_another_system_are_left_to_it_and_are_not_answered_after_a_restart_either(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    arms = {"sasrec": ArmSettings(share=0.5), "acme": ArmSettings(share=0.5, ranker="elsewhere")}
    shared = settings.model_copy(update={"policy": PolicySettings(arms=arms)})
    router = Router({"sasrec": 0.5, "acme": 0.5})
    users = [f"user-{number}" for number in range(20)]
    ours = {f"page-{user_id}" for user_id in users if router.choose(user_id) == "sasrec"}
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    for user_id in users:
        world.request(user_id, f"page-{user_id}")
    with running(shared):
        wait_until(lambda: world.answers(*ours))
    with running(shared):
        world.request(next(user_id for user_id in users if f"page-{user_id}" in ours), "later")
        wait_until(lambda: world.answers("later"))

    assert Counter(slate.request_id for slate in world.slates()) == Counter([*ours, "later"])
    assert {(slate.policy, slate.router_probability) for slate in world.slates()} == {("sasrec", 0.5)}


def test_before_the_first_model_users_get_popular_items(
    world: World, settings: Settings, wait_until: WaitUntil
) -> None:
    with running(settings):
        world.click("ann", 0, "item-1")
        wait_until(lambda: world.answers("clicks-0-0"))
        world.click("bob", 1, "item-2")
        slate = wait_until(lambda: world.answers("clicks-0-1"))["clicks-0-1"]

    assert (slate.policy, slate.model_version) == ("popular", None)
    assert [item.item_id for item in slate.items] == ["item-1"]


def test_bad_requests_go_to_the_dead_letters_and_the_next_is_answered(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    good = b'{"event_id":"e","user_id":"ann","timestamp_ms":1700000000000'
    bad = {
        b"not json": "malformed",
        b"": "malformed",
        good + b',"k":0}': "invalid",
        good + b',"k":-1}': "invalid",
        good + b',"k":1000000}': "invalid",
        good + b',"candidates":[' + b",".join([b'"x"'] * 10_001) + b"]}": "invalid",
        good + b',"exclude":[' + b",".join([b'"x"'] * 10_001) + b"]}": "invalid",
        good + b',"fresh_through_offset":-1}': "invalid",
        good + b',"fresh_through_ms":1700000000}': "invalid",
        good + b',"wait_ms":60001}': "invalid",
        b'{"event_id":"","user_id":"ann","timestamp_ms":1700000000000}': "invalid",
        b'{"event_id":"e","user_id":"somebody else","timestamp_ms":1700000000000}': "key",
        b'{"event_id":"e","user_id":"ann","timestamp_ms":4000000000000}': "future",
    }
    for value in bad:
        world.send_raw(REQUESTS, b"ann", value)
    world.request("ann", "good")
    with running(settings):
        wait_until(lambda: world.answers("good"))

    letters = read_all(world.kafka, REQUESTS + DEAD_LETTER_SUFFIX)
    assert {letter.value or b"": dict(letter.headers)[EXCEPTION].decode() for letter in letters} == bad
    assert [slate.request_id for slate in world.slates()] == ["good"]


def test_a_withdrawn_item_is_not_served_until_it_is_described_again(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    world.withdraw("item-1")
    world.describe("item-2", available=False)

    def eligible(event_id: str) -> set[str]:
        world.request("stranger", event_id, k=40)
        slate: Recommendation = wait_until(lambda: world.answers(event_id))[event_id]
        return {item.item_id for item in slate.items}

    with running(settings):
        assert eligible("at-start") == set(CATALOGUE_ITEMS) - {"item-1", "item-2"}

        world.withdraw("item-3")
        world.describe("item-1", available=True)
        asked = iter(range(10_000))
        wait_until(lambda: "item-3" not in eligible(f"page-{next(asked)}"))
        assert eligible("later") == set(CATALOGUE_ITEMS) - {"item-2", "item-3"}


def test_while_models_are_swapped_every_request_is_answered_once_by_one_version(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    versions = [write_model(version=number, items=CATALOGUE_ITEMS) for number in range(1, 6)]
    world.announce(versions[0])
    asked: list[str] = []

    def serves(version: str) -> bool:
        """Asks for fifty more, and looks whether that version has served any."""
        for _ in range(50):
            asked.append(f"page-{len(asked)}")
            world.request(f"user-{len(asked) % 7}", asked[-1], k=3)
        return version in {slate.model_version for slate in world.slates()}

    with running(settings):
        for version in versions:
            world.announce(version)
            wait_until(functools.partial(serves, f"first/{version.manifest.version}"))
        answers = wait_until(lambda: world.answers(*asked))

    assert len(world.slates()) == len(asked)
    for slate in answers.values():
        assert slate.model_version == f"first/{(slate.trained_through_ms or 0) - 1_600_000_000_000}"


def folder_of(checkpoint: WrittenCheckpoint) -> Path:
    assert isinstance(checkpoint.path, Path)
    return checkpoint.path


def flip_a_bit(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    weights = bytearray((folder_of(checkpoint) / MODEL).read_bytes())
    weights[-1] ^= 1
    (folder_of(checkpoint) / MODEL).write_bytes(weights)
    return checkpoint


def truncate(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    (folder_of(checkpoint) / MODEL).write_bytes((folder_of(checkpoint) / MODEL).read_bytes()[:-1])
    return checkpoint


def lose_a_file(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    (folder_of(checkpoint) / CATALOGUE).unlink()
    return checkpoint


def alter_the_manifest(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    manifest = (folder_of(checkpoint) / MANIFEST).read_text()
    (folder_of(checkpoint) / MANIFEST).write_text(manifest.replace('"examples_trained": 2', '"examples_trained": 3'))
    return checkpoint


def come_from_the_future(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    manifest = (folder_of(checkpoint) / MANIFEST).read_text().replace('"format": 1', '"format": 2').encode()
    (folder_of(checkpoint) / MANIFEST).write_bytes(manifest)
    return checkpoint._replace(manifest_sha256=hashlib.sha256(manifest).hexdigest())


def lose_everything(checkpoint: WrittenCheckpoint) -> WrittenCheckpoint:
    folder_of(checkpoint).rename(folder_of(checkpoint).with_name("elsewhere"))
    return checkpoint


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "was altered"),
        (truncate, "bytes instead of"),
        (lose_a_file, "cannot be read"),
        (alter_the_manifest, "is not the one that was announced"),
        (come_from_the_future, "has format 2"),
        (lose_everything, "cannot be read"),
    ],
)
def test_a_broken_checkpoint_is_skipped_and_the_old_model_serves_on(
    world: World,
    settings: Settings,
    write_model: WriteModel,
    wait_until: WaitUntil,
    damage: Callable[[WrittenCheckpoint], WrittenCheckpoint],
    reason: str,
) -> None:
    good, broken, better = (write_model(version=number, items=CATALOGUE_ITEMS) for number in (1, 2, 3))
    broken = damage(broken)
    asked = iter(range(10_000))

    def version() -> str | None:
        page = f"page-{next(asked)}"
        world.request("ann", page)
        served: str | None = wait_until(lambda: world.answers(page))[page].model_version
        return served

    world.announce(good)
    with capture_logs() as log, running(settings):
        assert version() == "first/1"
        world.announce(broken)
        wait_until(lambda: [line for line in log if line["event"] == SKIPPED])
        assert version() == "first/1"
        world.announce(better)
        wait_until(lambda: version() == "first/3")

    (skipped,) = [line for line in log if line["event"] == SKIPPED]
    assert skipped["version"] == "first/2"
    assert reason in skipped["reason"]
    assert {slate.model_version for slate in world.slates()} == {"first/1", "first/3"}


def test_a_worker_that_starts_on_a_broken_announcement_serves_the_version_before(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    write_model(version=1, items=CATALOGUE_ITEMS)
    broken = write_model(version=2, items=CATALOGUE_ITEMS)
    flip_a_bit(broken)
    world.announce(broken)
    with running(settings):
        world.request("ann", "page")
        slate = wait_until(lambda: world.answers("page"))["page"]

    assert slate.model_version == "first/1"


def test_a_restart_knows_everybody_and_answers_nothing_twice(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    with running(settings):
        world.click("ann", 0, "item-1", "item-2")
        wait_until(lambda: world.answers("clicks-0-0"))
    world.request("ann", "while-down")
    with running(settings):
        slate = wait_until(lambda: world.answers("while-down"))["while-down"]

    assert slate.history_length == 2
    assert Counter(one.request_id for one in world.slates()) == {"clicks-0-0": 1, "while-down": 1}


def test_kill_nine_under_load_loses_nothing_and_answers_nothing_twice(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    pages = [f"page-{number}" for number in range(1_500)]
    last_clicks = {f"clicks-0-{number}" for number in range(1_450, 1_500)}

    def open_pages(numbers: range) -> None:
        """Fifty users by turns each click, which may be coalesced, and open a page, which may not."""
        for number in numbers:
            world.click(f"user-{number % 50}", number, "item-1", f"item-{number % 39 + 2}")
            world.request(f"user-{number % 50}", pages[number], k=3)

    for kills in range(2):
        with process(settings, "the-worker") as child:
            open_pages(range(kills * 500, kills * 500 + 500))
            wait_until(functools.partial(world.has_more_slates_than, len(world.slates())))
            os.kill(child.pid, signal.SIGKILL)
    open_pages(range(1_000, 1_500))
    with running(settings, member="the-worker"):
        wait_until(lambda: {slate.request_id for slate in world.slates()} >= last_clicks.union(pages))

    assert set(Counter(slate.request_id for slate in world.slates()).values()) == {1}


def test_when_one_of_two_workers_is_killed_under_load_the_other_answers_all_and_nothing_twice(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    users = [f"user-{number}" for number in range(40)]
    for offset, user_id in enumerate(users):
        world.click(user_id, offset, "item-1", "item-2")

    def ask(wave: str) -> list[str]:
        pages = [f"{wave}-{number}" for number in range(300)]
        for number, page in enumerate(pages):
            world.request(users[number % len(users)], page, k=3)
        return pages

    def both_have_joined() -> bool:
        with admin(world.kafka) as client:
            (group,) = client.describe_groups([world.kafka.group("scoring")]).values()
        return bool(group["group_state"] == "Stable" and len(group["members"]) == 2)

    with running(settings, member="survivor"), process(settings, "victim") as victim:
        world.request(users[0], "first", k=3)
        wait_until(lambda: world.answers("first"))
        wait_until(both_have_joined)
        before = ask("before")
        wait_until(lambda: world.answers(*before))
        so_far = len(world.slates())
        under_way = ask("under way")
        wait_until(lambda: world.has_more_slates_than(so_far))
        os.kill(victim.pid, signal.SIGKILL)
        after = ask("after")
        wait_until(lambda: {slate.request_id for slate in world.slates()} >= {*under_way, *after})

    assert set(Counter(slate.request_id for slate in world.slates()).values()) == {1}


def test_a_given_checkpoint_serves_whatever_is_announced(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    given, announced = (write_model(version=number, items=CATALOGUE_ITEMS) for number in (1, 2))
    world.announce(announced)
    fixed = settings.scoring.model_copy(update={"checkpoint": given.path})
    with running(settings.model_copy(update={"scoring": fixed})):
        world.request("ann", "page")
        slate = wait_until(lambda: world.answers("page"))["page"]

    assert slate.model_version == "first/1"


def test_a_given_checkpoint_that_is_broken_ends_the_worker_and_is_named(
    kafka: KafkaSettings, settings: Settings, write_model: WriteModel
) -> None:
    broken = truncate(write_model(version=1, items=CATALOGUE_ITEMS))
    fixed = settings.scoring.model_copy(update={"checkpoint": broken.path})

    with pytest.raises(ValueError, match=r"model\.safetensors has \d+ bytes instead of"):
        run_worker(settings.model_copy(update={"scoring": fixed}), threading.Event())


def test_an_item_that_cannot_be_read_goes_to_the_dead_letters_and_stays_as_it_was(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    bad = {b"not json": "malformed", b'{"item_id":""}': "invalid", b'{"item_id":"item-9","available":false}': "key"}
    for number, value in enumerate(bad):
        world.send_raw(ITEMS, f"item-{number}".encode(), value)
    with running(settings):
        world.request("stranger", "page", k=40)
        slate = wait_until(lambda: world.answers("page"))["page"]

    letters = read_all(world.kafka, ITEMS + DEAD_LETTER_SUFFIX)
    assert {letter.value: dict(letter.headers)[EXCEPTION].decode() for letter in letters} == bad
    assert len(slate.items) == 40


def test_two_workers_share_the_users_and_one_takes_over_all(
    world: World, settings: Settings, write_model: WriteModel, wait_until: WaitUntil
) -> None:
    world.announce(write_model(version=1, items=CATALOGUE_ITEMS))
    users = [f"user-{number}" for number in range(20)]
    for offset, user_id in enumerate(users):
        world.click(user_id, offset, "item-1", "item-2")

    def ask(wave: str) -> list[Recommendation]:
        pages = [f"{wave}-{user_id}" for user_id in users]
        for user_id, page in zip(users, pages, strict=True):
            world.request(user_id, page, k=3)
        return list(wait_until(lambda: world.answers(*pages)).values())

    with running(settings):
        first = ask("first")
        with running(settings):
            second = ask("second")
        third = ask("third")

    assert {slate.history_length for slate in (*first, *second, *third)} == {2}
    assert set(Counter(slate.request_id for slate in world.slates()).values()) == {1}


async def test_a_worker_that_waits_for_an_assignment_in_vain_joins_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.scoring.inputs.SETTLE_SECONDS", 0.5)
    inputs = Inputs(settings.kafka)
    await inputs.start()
    try:
        await settled(inputs)
        inputs.moving = True

        await settled(inputs)
        assert not inputs.moving
    finally:
        await inputs.close()


async def test_the_group_waits_for_what_was_sent_before_partitions_move(settings: Settings) -> None:
    waits = 0

    async def wait() -> None:
        nonlocal waits
        waits += 1
        assert first.moving

    async with contextlib.AsyncExitStack() as stack:
        first = Inputs(settings.kafka, before_moving=wait)
        stack.push_async_callback(first.close)
        await first.start()
        await settled(first)
        at_first = waits
        second = Inputs(settings.kafka)
        stack.push_async_callback(second.close)
        await second.start()

        await asyncio.gather(settled(first), settled(second))

    assert waits > at_first


async def settled(inputs: Inputs) -> None:
    """Returns when the group has settled; a test that waits in vain ends by its own time limit."""
    async with asyncio.timeout(30):
        while await inputs.rebalanced() is None:
            await inputs.poll(timeout_seconds=0.1, limit=1)


def read_all(kafka: KafkaSettings, name: str) -> list[Any]:
    with consumer(kafka) as reader:
        topic = kafka.topic(name)
        partitions = [TopicPartition(topic, number) for number in reader.partitions_for_topic(topic)]
        reader.assign(partitions)
        ends = reader.end_offsets(partitions)
        records: list[Any] = []
        while any(reader.position(partition) < ends[partition] for partition in partitions):
            records += [record for found in reader.poll(timeout_ms=200).values() for record in found]
        return records
