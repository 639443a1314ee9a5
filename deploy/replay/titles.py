"""Titles and categories of items, from MovieLens' files or any table with item_id and title."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from deploy.replay.events import Event, Message
from deploy.replay.layouts import Layout, layout_of, read_columns
from stream.events import Item
from stream.topics import ITEMS

_IDS = ("item_id", "movieId", "video_id")
_CATEGORIES = ("category", "genres")
_MOVIES_DAT = "::"
_U_ITEM_FIELDS = 24


def load_items(path: Path) -> Iterator[Item]:
    """Items of movies.dat, u.item, movies.csv, or parquet or csv with item_id, title and perhaps category or genres.

    Raises:
        ValueError: no such file, or its columns are not there; the message names those that are.
    """
    layout = layout_of(path)
    if _MOVIES_DAT in layout.names[0]:
        return _movies_dat(path)
    if layout.delimiter == "|" and len(layout.names) == _U_ITEM_FIELDS:
        return _u_item(path)
    return _table(path, layout)


def item_event(item: Item) -> Event:
    """The message that tells every process of an item; items have no time of their own."""
    return Event(0, (Message(ITEMS, item.item_id.encode(), msgspec.json.encode(item)),))


def _lines(path: Path, delimiter: str) -> Iterator[list[str]]:
    with path.open(encoding="latin-1") as file:
        for line in file:
            yield line.rstrip("\n").split(delimiter)


def _movies_dat(path: Path) -> Iterator[Item]:
    for item_id, title, genres in _lines(path, _MOVIES_DAT):
        yield Item(item_id=item_id, title=title, category=genres)


def _u_item(path: Path) -> Iterator[Item]:
    for item_id, title, *_ in _lines(path, "|"):
        yield Item(item_id=item_id, title=title)


def _table(path: Path, layout: Layout) -> Iterator[Item]:
    item, title = _first(path, layout, _IDS), _first(path, layout, ("title",))
    category = next((name for name in _CATEGORIES if name in layout.names), title)
    rows = read_columns(path, layout, names=(item, title, category), text=(item, title, category))
    return (
        Item(item_id=row[item], title=row[title], category=None if category == title else row[category])
        for row in rows.to_pylist()
    )


def _first(path: Path, layout: Layout, wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in layout.names:
            return name
    raise ValueError(f"{path} has no column {' or '.join(wanted)}; it has: {', '.join(layout.names)}")
