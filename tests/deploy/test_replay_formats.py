from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay.formats import Columns, load_log
from deploy.replay.histories import after_histories, load_histories
from deploy.replay.times import TimeUnit, to_milliseconds
from stream.events import EARLIEST_MS, LATEST_MS

GENERIC = Columns(user="who", item="what", time="when")
NOON_MS = 1_700_000_000_000


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def triples(path: Path) -> list[tuple[str, str, int]]:
    rows = load_log(path).rows.to_pylist()
    return [(row["user_id"], row["item_id"], row["time_ms"]) for row in rows]


def test_ratings_dat_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "1::1193::5::978300760\n2::661::3::978300000\n")

    log = load_log(path)

    assert (log.format, log.time_unit) == ("movielens", "s")
    assert triples(path) == [("2", "661", 978_300_000_000), ("1", "1193", 978_300_760_000)]


def test_u_data_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n")

    assert triples(path) == [("196", "242", 881_250_949_000), ("186", "302", 891_717_742_000)]


def test_ratings_csv_of_the_newer_movielens_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "userId,movieId,rating,timestamp\n1,307,3.5,1256677221\n")

    assert triples(path) == [("1", "307", 1_256_677_221_000)]


def test_every_rating_is_a_click_that_nobody_served(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "1::1193::5::978300760\n")

    (row,) = load_log(path).rows.to_pylist()

    assert (row["shown"], row["clicked"], row["propensity"], row["position"], row["policy"]) == (
        False,
        True,
        None,
        None,
        None,
    )


def test_the_order_within_a_user_decides_where_times_are_the_same(tmp_path: Path) -> None:
    columns = {"user_id": [1, 1, 1], "item_id": [30, 10, 20], "timestamp": [978_300_760] * 3, "pos": [2, 0, 1]}
    path = write_parquet(tmp_path / "log", columns)

    assert [item for _, item, _ in triples(path)] == ["10", "20", "30"]


def test_kuairand_rows_are_impressions_of_which_some_were_clicked(tmp_path: Path) -> None:
    path = write(tmp_path / "log", f"user_id,video_id,time_ms,is_click,tab\n7,70,{NOON_MS},1,0\n8,80,{NOON_MS},0,1\n")

    log = load_log(path)

    assert (log.format, log.time_unit) == ("kuairand", "ms")
    assert [(row["shown"], row["clicked"]) for row in log.rows.to_pylist()] == [(True, True), (True, False)]


def test_any_csv_works_when_its_columns_are_named(tmp_path: Path) -> None:
    text = "who;what;when;p;slot;by\nanna;007;2023-11-14T22:13:20Z;0.25;3;greedy\n"
    columns = Columns(user="who", item="what", time="when", propensity="p", position="slot", policy="by")

    log = load_log(write(tmp_path / "log", text), columns=columns)

    assert (log.format, log.time_unit) == ("generic", "iso")
    assert log.rows.to_pylist() == [
        {
            "user_id": "anna",
            "item_id": "007",
            "time_ms": NOON_MS,
            "shown": True,
            "clicked": True,
            "propensity": 0.25,
            "position": 3,
            "policy": "greedy",
        }
    ]


def test_a_wrong_column_name_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "log", f"who,what,when\n1,2,{NOON_MS}\n")

    with pytest.raises(ValueError, match="has no column user; it has: who, what, when"):
        load_log(path, columns=Columns(user="user", item="what", time="when"))


def test_an_unknown_format_asks_for_the_columns_and_names_those_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "log", f"who,what,when\n1,2,{NOON_MS}\n")

    with pytest.raises(ValueError, match=r"--user-column.*it has: who, what, when"):
        load_log(path)


def test_a_forced_format_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "1::1193::5::978300760\n")

    with pytest.raises(ValueError, match="is not kuairand"):
        load_log(path, format_name="kuairand")


@pytest.mark.parametrize("text", ["", "\n", "who,what,when\n"], ids=["nothing", "an empty line", "a header"])
def test_a_log_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="give a log with rows"):
        load_log(write(tmp_path / "log", text), columns=GENERIC)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"):
        load_log(tmp_path / "nowhere")


def test_an_empty_id_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "log", f"who,what,when\n1,2,{NOON_MS}\n1,,{NOON_MS}\n")

    with pytest.raises(ValueError, match="column what is empty in 1 rows, first in row 2"):
        load_log(path, columns=GENERIC)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"PAR1 and then nothing")

    with pytest.raises(ValueError, match="cannot be read"):
        load_log(path)


def test_a_position_that_no_slate_has_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "log", {"who": ["1"], "what": ["2"], "when": [NOON_MS], "slot": [1_000]})

    with pytest.raises(ValueError, match="0 to 999"):
        load_log(path, columns=Columns(user="who", item="what", time="when", position="slot"))


@given(
    st.lists(st.integers(EARLIEST_MS // 1_000, LATEST_MS // 1_000), min_size=1),
    st.sampled_from(["s", "ms", "us", "iso", "datetime"]),
)
def test_the_same_times_are_understood_in_every_unit(seconds: list[int], kept_in: str) -> None:
    scale = {"s": 1, "ms": 1_000, "us": 1_000_000}
    moments = [datetime.datetime.fromtimestamp(second, datetime.UTC) for second in seconds]
    kept: dict[str, list[Any]] = {unit: [second * times for second in seconds] for unit, times in scale.items()}
    kept |= {"iso": [moment.isoformat() for moment in moments], "datetime": moments}

    times = to_milliseconds(pa.chunked_array([kept[kept_in]]), unit=None, column="when")

    assert times.time_ms.to_pylist() == [second * 1_000 for second in seconds]
    assert times.unit == ("iso" if kept_in == "datetime" else kept_in)


def test_seconds_with_a_fraction_keep_their_milliseconds() -> None:
    times = to_milliseconds(pa.chunked_array([[978_300_760.123]]), unit=None, column="when")

    assert times.time_ms.to_pylist() == [978_300_760_123]


@pytest.mark.parametrize(
    ("values", "unit", "reason"),
    [
        ([12, 15], None, "neither seconds, milliseconds nor microseconds"),
        ([NOON_MS, NOON_MS // 1_000], None, "neither seconds, milliseconds nor microseconds"),
        ([NOON_MS], "s", "not between 1980 and 2100 in s"),
        ([NOON_MS], "iso", "holds numbers"),
        (["yesterday"], None, "such as 'yesterday'"),
        (["2023-11-14"], "ms", "not numbers in ms"),
    ],
)
def test_times_that_make_no_sense_are_refused(values: list[Any], unit: TimeUnit | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_milliseconds(pa.chunked_array([values]), unit=unit, column="when")


def test_histories_come_before_the_log_each_in_its_own_order(tmp_path: Path) -> None:
    histories = write_parquet(
        tmp_path / "histories",
        {"user_id": [7, 8, 9], "watch_seq": [[1, 2, 2], [], [5]], "last_time_ms": [NOON_MS, NOON_MS, NOON_MS - 500]},
    )
    log = write(tmp_path / "log", f"user_id,video_id,time_ms,is_click\n7,70,{NOON_MS + 1},0\n")

    rows = after_histories(load_log(log).rows, load_histories(histories)).to_pylist()

    assert [(row["user_id"], row["item_id"], row["time_ms"] - NOON_MS, row["shown"]) for row in rows] == [
        ("7", "1", -2_000, False),
        ("7", "2", -1_000, False),
        ("9", "5", -500, False),
        ("7", "2", 0, False),
        ("7", "70", 1, True),
    ]


def test_what_a_history_repeats_of_the_log_is_left_out(tmp_path: Path) -> None:
    histories = write_parquet(
        tmp_path / "histories", {"user_id": [7], "watch_seq": [[1, 70]], "last_time_ms": [NOON_MS]}
    )
    log = write(tmp_path / "log", f"user_id,video_id,time_ms,is_click\n7,70,{NOON_MS},1\n")

    rows = after_histories(load_log(log).rows, load_histories(histories)).to_pylist()

    assert [(row["item_id"], row["shown"]) for row in rows] == [("1", False), ("70", True)]


def test_histories_without_their_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="watch_seq"):
        load_histories(write_parquet(tmp_path / "histories", {"user_id": [1]}))
