"""What may not be served: items that the `items` topic says are unavailable, or that a tombstone withdrew."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from deploy.scoring.follow import follow
from stream.dead_letters import UnreadableError
from stream.events import Item
from stream.settings import KafkaSettings
from stream.topics import ITEMS

Refuse = Callable[[Any, UnreadableError], None]
"""Takes a record that cannot be read, and why."""


class Standing(NamedTuple):
    """What the newest record of an item says."""

    item_id: str
    available: bool
    category: str | None


class Items:
    """Follows `items`. A withdrawn item stays withdrawn until it is described again.

    What cannot be read is refused at every start anew, for it still stands there; the item's standing stays as it was.
    """

    def __init__(self, kafka: KafkaSettings, *, refuse: Refuse) -> None:
        self._kafka = kafka
        self._refuse = refuse
        self.ready = threading.Event()
        """Set when the whole topic was read."""
        self.withdrawn: frozenset[str] = frozenset()
        """Replaced as a whole, never changed: a batch that holds it sees one state."""
        self.available: frozenset[str] = frozenset()
        """Replaced with every change, of categories, too."""
        self.categories: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Follows the topic until `stop`; for a thread of its own."""
        for changes in follow(self._kafka, ITEMS, stop):
            self._apply(changes)
            self.ready.set()

    def _apply(self, changes: Mapping[bytes, Any]) -> None:
        standing: dict[str, bool] = {}
        for record in changes.values():
            try:
                item_id, available, category = read_item(record.key, record.value)
            except UnreadableError as error:
                self._refuse(record, error)
            else:
                standing[item_id] = available
                self._file(item_id, category)
        gone = {item_id for item_id, available in standing.items() if not available}
        here = standing.keys() - gone
        self.withdrawn = (self.withdrawn | gone) - here
        self.available = (self.available | here) - gone

    def _file(self, item_id: str, category: str | None) -> None:
        if category is None:
            self.categories.pop(item_id, None)
        else:
            self.categories[item_id] = category


def read_item(key: bytes, value: bytes | None) -> Standing:
    """What a record says of its item; a tombstone withdraws it.

    Raises:
        UnreadableError: no item, or one under another's key.
    """
    try:
        item_id = key.decode()
        item = None if value is None else _decoder().decode(value)
    except msgspec.ValidationError as error:
        raise UnreadableError("invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError("malformed", f"not JSON: {error}") from error
    if item is not None and item.item_id != item_id:
        raise UnreadableError("key", "the key is not the item_id in UTF-8; send it, so that the newest counts")
    if item is None:
        return Standing(item_id, available=False, category=None)
    return Standing(item_id, item.available, item.category)


@functools.cache
def _decoder() -> msgspec.json.Decoder[Item]:
    return msgspec.json.Decoder(Item)
