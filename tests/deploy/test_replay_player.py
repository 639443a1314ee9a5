from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cli.replay import named_columns, parse_speed
from deploy.observe.reading import read_all
from deploy.observe.titles import read_titles
from deploy.replay.events import Event, Message
from deploy.replay.player import MAX_UNACKNOWLEDGED, Pace, play
from stream.events import Click
from stream.settings import KafkaSettings
from stream.topics import CLICKS

SECOND_MS = 1_000
COMMAND = Path(sys.executable).with_name("sasrec-stream")


def event(number: int) -> Event:
    user = f"user {number % 7}".encode()
    return Event(number * SECOND_MS, (Message(CLICKS, user, b"%d" % number),))


def numbers(kafka: KafkaSettings) -> list[int]:
    return [int(record.value) for record in read_all(kafka, CLICKS)]


def test_an_event_is_due_as_many_times_faster_as_asked_after_the_first() -> None:
    now = 100.0
    pace = Pace(10.0, clock=lambda: now)

    assert pace.seconds_until(5_000) == 0.0
    assert pace.seconds_until(65_000) == 6.0
    now = 107.0
    assert pace.seconds_until(65_000) == -1.0


def test_without_a_speed_every_event_is_due_at_once() -> None:
    pace = Pace(None)

    assert [pace.seconds_until(time_ms) for time_ms in (0, 10**15)] == [0.0, 0.0]


@pytest.mark.parametrize("text", ["fast", "0", "-3", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither max nor a number above zero"):
        parse_speed(text)


def test_naming_one_column_asks_for_all_three_that_matter() -> None:
    assert named_columns(user=None, item=None, time=None) is None
    with pytest.raises(ValueError, match="--time-column"):
        named_columns(user="u", item="i", time=None)


@pytest.mark.broker
def test_every_message_arrives_once_in_the_order_of_its_user(kafka: KafkaSettings) -> None:
    count = MAX_UNACKNOWLEDGED + 1_000

    played = play(map(event, range(count)), kafka=kafka, pace=Pace(None), stop=threading.Event())

    arrived = numbers(kafka)
    assert (played.events, played.messages, played.through_ms) == (count, {CLICKS: count}, (count - 1) * SECOND_MS)
    assert sorted(arrived) == list(range(count))
    for user in range(7):
        assert [n for n in arrived if n % 7 == user] == list(range(user, count, 7))


@pytest.mark.broker
def test_a_stopped_replay_has_sent_exactly_what_it_says(kafka: KafkaSettings) -> None:
    stop = threading.Event()

    def stopped_after_ten() -> Iterator[Event]:
        for number in range(1_000):
            if number == 10:
                stop.set()
            yield event(number)

    played = play(stopped_after_ten(), kafka=kafka, pace=Pace(None), stop=stop)

    assert played.events == 10
    assert sorted(numbers(kafka)) == list(range(10))


@pytest.mark.broker
def test_a_slow_replay_does_not_make_a_stop_wait(kafka: KafkaSettings) -> None:
    stop = threading.Event()
    reached: list[int] = []

    def a_year_apart() -> Iterator[Event]:
        for number in range(2):
            reached.append(number)
            yield event(number * 365 * 24 * 3_600)
        pytest.fail("the second event must not be sent")

    threading.Timer(0.2, stop.set).start()
    played = play(a_year_apart(), kafka=kafka, pace=Pace(1.0), stop=stop)

    assert (played.events, reached) == (1, [0, 1])


@pytest.mark.broker
def test_a_message_that_kafka_refuses_ends_the_replay_with_a_reason(kafka: KafkaSettings) -> None:
    too_large = Event(0, (Message(CLICKS, b"user", b"x" * (kafka.max_message_bytes + 1)),))

    with pytest.raises(ValueError, match="Kafka refused one of 1 messages"):
        play([event(0), too_large], kafka=kafka, pace=Pace(None), stop=threading.Event())


@pytest.mark.broker
def test_ctrl_c_ends_the_command_and_says_exactly_how_to_go_on(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Callable[[Callable[[], object]], object]
) -> None:
    log = tmp_path / "ratings.dat"
    log.write_text("".join(f"1::{n}::4::{978_300_000 + n * 3_600}\n" for n in range(1, 10_001)))
    prefix = {"SASREC__KAFKA__TOPIC_PREFIX": kafka.topic_prefix, "SASREC__KAFKA__PARTITIONS": str(kafka.partitions)}
    command = [str(COMMAND), "--bootstrap-servers", kafka.bootstrap_servers, "replay", str(log), "--speed", "36000"]

    with subprocess.Popen(
        command, env=os.environ | prefix, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as playing:
        wait_until(lambda: list(read_all(kafka, CLICKS)))
        playing.send_signal(signal.SIGINT)
        said, _ = playing.communicate()

    arrived = len(list(read_all(kafka, CLICKS)))
    assert playing.returncode == 130
    assert said.decode().endswith(f"stopped; go on with --skip {arrived}\n")


@pytest.mark.broker
def test_the_command_plays_a_file_goes_on_where_it_stopped_and_publishes_titles(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("SASREC__KAFKA__PARTITIONS", str(kafka.partitions))
    log = tmp_path / "ratings.dat"
    log.write_text("".join(f"{n % 3}::{n}::4::{978_300_000 + n}\n" for n in range(1, 31)))
    movies = tmp_path / "movies.csv"
    movies.write_text('movieId,title,genres\n7,"Seven",Crime\n')
    command = ["--bootstrap-servers", kafka.bootstrap_servers, "replay", str(log)]

    first = CliRunner().invoke(app, [*command, "--limit", "20", "--items", str(movies)], catch_exceptions=False)
    second = CliRunner().invoke(app, [*command, "--skip", "20"], catch_exceptions=False)

    clicks = [msgspec.json.decode(record.value, type=Click) for record in read_all(kafka, CLICKS)]
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert sorted(int(click.item_id) for click in clicks) == list(range(1, 31))
    assert read_titles(kafka) == {"7": "Seven"}
    assert "20 rows in" in first.stdout
