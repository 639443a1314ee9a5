from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay.events import events, row_id
from deploy.replay.titles import item_event, load_items
from stream.events import MAX_ID_BYTES, Click, Impression, Item, SeenItem, check_id

COMMON = {
    "user_id": "7",
    "item_id": "70",
    "time_ms": 1_700_000_000_000,
    "shown": False,
    "clicked": True,
    "propensity": None,
    "position": None,
    "policy": None,
}


def rows(*changes: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([COMMON | change for change in changes])


def test_a_row_of_a_click_log_is_an_organic_click() -> None:
    (event,) = events(rows({}))

    (message,) = event.messages
    assert (event.time_ms, message.topic, message.key) == (COMMON["time_ms"], "clicks", b"7")
    assert msgspec.json.decode(message.value, type=Click) == Click(
        event_id="7:70:1700000000000/click", user_id="7", item_id="70", timestamp_ms=1_700_000_000_000
    )


def test_a_row_that_was_shown_and_clicked_is_a_slate_and_a_click_on_it() -> None:
    (event,) = events(rows({"shown": True, "propensity": 0.5, "position": 2, "policy": "greedy"}))

    shown, clicked = event.messages
    impression = msgspec.json.decode(shown.value, type=Impression)
    click = msgspec.json.decode(clicked.value, type=Click)
    assert (shown.topic, clicked.topic) == ("impressions", "clicks")
    assert impression.items == (SeenItem(item_id="70", position=2, propensity=0.5),)
    assert (impression.policy, impression.request_id) == ("greedy", click.request_id)
    assert impression.timestamp_ms == click.timestamp_ms
    assert impression.event_id != click.event_id


def test_a_row_that_stayed_unclicked_is_only_an_impression() -> None:
    (event,) = events(rows({"shown": True, "clicked": False}))

    assert [message.topic for message in event.messages] == ["impressions"]


def test_the_same_row_twice_has_the_same_ids_twice() -> None:
    first, again, other = events(rows({"shown": True}, {"shown": True}, {"shown": True, "item_id": "71"}))

    assert first == again
    assert first != other


def test_a_row_that_breaks_a_bound_is_named() -> None:
    with pytest.raises(ValueError, match=r"user '7', item 'x+', 1700000000000 ms: item_id has 300 bytes"):
        list(events(rows({"item_id": "x" * 300})))


@given(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256)] * 2)
def test_an_id_made_of_ids_is_an_id(user_id: str, item_id: str) -> None:
    made = row_id(user_id, item_id, 1_700_000_000_000)

    check_id(made + "/click", field="event_id")
    assert made == row_id(user_id, item_id, 1_700_000_000_000)
    assert made != row_id(user_id, item_id, 1_700_000_000_001)
    assert len(made.encode()) < MAX_ID_BYTES


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("1::Café: The Film (1995)::Comedy|Drama\n", "Comedy|Drama"),
        ("1|Café: The Film (1995)|01-Jan-1995||http://x|" + "|".join("0" * 19) + "\n", None),
    ],
    ids=["movies.dat", "u.item"],
)
def test_titles_of_the_older_movielens_are_latin_1(tmp_path: Path, text: str, category: str | None) -> None:
    path = tmp_path / "items"
    path.write_text(text, encoding="latin-1")

    assert list(load_items(path)) == [Item(item_id="1", title="Café: The Film (1995)", category=category)]


def test_titles_of_the_newer_movielens_are_csv(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_text('movieId,title,genres\n1,"Café, The (1995)",Comedy\n', encoding="utf-8")

    assert list(load_items(path)) == [Item(item_id="1", title="Café, The (1995)", category="Comedy")]


def test_a_file_without_titles_is_answered_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_text("item_id,price\n1,2\n")

    with pytest.raises(ValueError, match="has no column title; it has: item_id, price"):
        load_items(path)


def test_an_item_goes_to_its_own_key() -> None:
    (message,) = item_event(Item(item_id="70", title="Seventy")).messages

    assert (message.topic, message.key) == ("items", b"70")
    assert msgspec.json.decode(message.value, type=Item).title == "Seventy"
