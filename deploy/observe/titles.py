"""What items are called, for whatever a person looks at."""

from __future__ import annotations

import msgspec

from deploy.observe.reading import read_all
from stream.events import Item
from stream.settings import KafkaSettings
from stream.topics import ITEMS


def read_titles(kafka: KafkaSettings) -> dict[str, str]:
    """Item id to title, from all that stands on `items` now; items without a title or withdrawn are left out."""
    titles: dict[str, str] = {}
    for record in read_all(kafka, ITEMS):
        title = _title(record.value)
        item_id = record.key.decode(errors="replace")
        if title is None:
            titles.pop(item_id, None)
        else:
            titles[item_id] = title
    return titles


def _title(value: bytes | None) -> str | None:
    """None too for what cannot be read: whoever serves from `items` sends that to its dead letters."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Item).title
    except msgspec.DecodeError:
        return None
