"""Item ids (text) and their rows in the item table: growth, eviction, tombstones, popularity.

Shapes: R rows of the table, P positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import repeat
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int
from msgspec import Meta

PADDING = 0
"""The row of an empty slot and of an item nobody knows; its embedding is zero and never learns."""

SMALLEST_CAPACITY = 1_024
RESCALE_ABOVE = 1e100


class CatalogueDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A catalogue as it stands in a checkpoint; arrays are little-endian bytes."""

    max_items: Annotated[int, Meta(ge=1)]
    half_life_clicks: Annotated[float, Meta(gt=0.0)]
    size: Annotated[int, Meta(ge=1)]
    item_ids: list[str]
    """Least recently used first."""
    rows: bytes
    """int64, the row of each id."""
    tombstones: list[int]
    """Rows without an item, in the order in which they will be used again from the end."""
    clicks: bytes
    """int64 per row."""
    recent: bytes
    """float64 per row, relative to `recent_scale`."""
    recent_scale: float


class CatalogueChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a catalogue since a mark; arrays are little-endian bytes."""

    size: Annotated[int, Meta(ge=1)]
    rows: bytes
    """int64, rows that were given to an item or lost theirs."""
    item_ids: list[str | None]
    """What stands in them now."""
    counted_rows: bytes
    """int64, rows whose counts changed."""
    clicks: bytes
    """int64, of `counted_rows`."""
    recent: bytes
    """float64, of `counted_rows`, relative to `recent_scale`."""
    recent_scale: float


class Catalogue:
    """Which item stands in which row. Row 0 is padding, rows 1.. are items.

    `max_items` bounds the table: admitting one item more evicts the least recently admitted one. `half_life_clicks` is
    the number of clicks after which a click counts half in `recent_click_counts`. Both may be set anew at any time.
    """

    def __init__(self, *, max_items: int, half_life_clicks: float) -> None:
        if max_items < 1:
            raise ValueError(f"max_items {max_items} leaves no room; allow at least one item")
        self.max_items = max_items
        self.half_life_clicks = half_life_clicks
        self._row_by_id: OrderedDict[str, int] = OrderedDict()
        self._id_by_row: list[str | None] = [None]
        self._tombstones: list[int] = []
        self._fresh: dict[int, None] = {}
        self._live_R: Bool[np.ndarray, " R"] = np.zeros(SMALLEST_CAPACITY, dtype=np.bool_)
        self._clicks_R: Int[np.ndarray, " R"] = np.zeros(SMALLEST_CAPACITY, dtype=np.int64)
        self._recent_R: Float[np.ndarray, " R"] = np.zeros(SMALLEST_CAPACITY, dtype=np.float64)
        self._recent_scale = 1.0
        self._mark = 1
        self._placed_R: Int[np.ndarray, " R"] = np.zeros(SMALLEST_CAPACITY, dtype=np.int64)
        self._counted_R: Int[np.ndarray, " R"] = np.zeros(SMALLEST_CAPACITY, dtype=np.int64)

    def __len__(self) -> int:
        """Items known now."""
        return len(self._row_by_id)

    @property
    def size(self) -> int:
        """Rows in use, padding and tombstones included; never shrinks."""
        return len(self._id_by_row)

    @property
    def capacity(self) -> int:
        """Rows to allocate: the power of two that holds `size`, so that growth copies each row O(1) times."""
        return max(SMALLEST_CAPACITY, 1 << (self.size - 1).bit_length())

    def row_of(self, item_id: str) -> int:
        """The item's row, PADDING if unknown. Does not count as use."""
        return self._row_by_id.get(item_id, PADDING)

    def rows_of(self, item_ids: Iterable[str]) -> Int[np.ndarray, " P"]:
        """The items' rows in order, PADDING for each unknown one.

        Look rows up after the last `admit` of a micro-batch: an admission may evict an item looked up before.
        """
        return np.fromiter(map(self._row_by_id.get, item_ids, repeat(PADDING)), dtype=np.int64)

    def item_of(self, row: int) -> str:
        """The id in a row.

        Raises:
            LookupError: padding, a tombstone or beyond the table.
        """
        item_id = self._id_by_row[row] if 0 <= row < self.size else None
        if item_id is None:
            raise LookupError(f"row {row} holds no item")
        return item_id

    def admit(self, item_id: str) -> int:
        """The item's row, a fresh one if it has none, and marks the item as the most recently used.

        Beyond `max_items` the least recently used item goes. Fresh rows are told by `take_fresh_rows`.
        """
        row = self._row_by_id.get(item_id)
        if row is not None:
            self._row_by_id.move_to_end(item_id)
            return row
        while len(self._row_by_id) >= self.max_items:
            self.retire(next(iter(self._row_by_id)))
        return self._place(item_id)

    def retire(self, item_id: str) -> None:
        """Forgets an item; its row becomes a tombstone that the next new item takes. An unknown item is ignored."""
        row = self._row_by_id.pop(item_id, None)
        if row is None:
            return
        self._id_by_row[row] = None
        self._live_R[row] = False
        self._clicks_R[row] = 0
        self._recent_R[row] = 0.0
        self._placed_R[row] = self._counted_R[row] = self._mark
        self._fresh.pop(row, None)
        self._tombstones.append(row)

    def take_fresh_rows(self) -> Int[np.ndarray, " R"]:
        """Rows given to an item since the last call, in that order: reset their weights and optimiser state."""
        rows_R = np.array(list(self._fresh), dtype=np.int64)
        self._fresh.clear()
        return rows_R

    def live_rows(self) -> Int[np.ndarray, " R"]:
        """Rows that hold an item, ascending."""
        return np.flatnonzero(self._live_R[: self.size])

    def live_mask(self) -> Bool[np.ndarray, " R"]:
        """Whether each of the `size` rows holds an item."""
        return self._live_R[: self.size].copy()

    def click_counts(self) -> Int[np.ndarray, " R"]:
        """Clicks counted on each row's item since it was admitted."""
        return self._clicks_R[: self.size].copy()

    def recent_click_counts(self) -> Float[np.ndarray, " R"]:
        """The same, each click halved with every `half_life_clicks` clicks counted after it."""
        return self._recent_R[: self.size] / self._recent_scale

    def count_clicks(self, row_P: Int[np.ndarray, " P"]) -> None:
        """Adds clicks; PADDING is ignored. The cost follows the clicks, not the catalogue."""
        row_P = row_P[row_P != PADDING]
        np.add.at(self._clicks_R, row_P, 1)
        self._counted_R[row_P] = self._mark
        # Forward decay (Cormode et al. 2009): newer clicks weigh more, instead of older ones less.
        self._recent_scale *= 2.0 ** (len(row_P) / self.half_life_clicks)
        np.add.at(self._recent_R, row_P, self._recent_scale)
        if self._recent_scale > RESCALE_ABOVE:
            self._recent_R /= self._recent_scale
            self._recent_scale = 1.0
            self._counted_R[: self.size] = self._mark

    def mark(self) -> int:
        """A moment, for `changes_since`."""
        self._mark += 1
        return self._mark

    def changes_since(self, mark: int) -> CatalogueChanges:
        """Whatever changed after a mark that this catalogue gave; the order of use is left out."""
        placed = np.flatnonzero(self._placed_R[: self.size] >= mark)
        counted = np.flatnonzero(self._counted_R[: self.size] >= mark)
        return CatalogueChanges(
            size=self.size,
            rows=placed.astype("<i8").tobytes(),
            item_ids=[self._id_by_row[row] for row in placed.tolist()],
            counted_rows=counted.astype("<i8").tobytes(),
            clicks=self._clicks_R[counted].astype("<i8").tobytes(),
            recent=self._recent_R[counted].astype("<f8").tobytes(),
            recent_scale=self._recent_scale,
        )

    def apply(self, changes: CatalogueChanges) -> None:
        """Becomes, but for the order of use, what gave `changes`, if it was what that was at the mark.

        Raises:
            ValueError: the changes belong to another catalogue; nothing was changed.
        """
        rows = np.frombuffer(changes.rows, dtype="<i8").tolist()
        self._check(changes, rows)
        self._id_by_row += [None] * (changes.size - self.size)
        self._make_room()
        for row in rows:
            former = self._id_by_row[row]
            if former is not None:
                del self._row_by_id[former]
        for row, item_id in zip(rows, changes.item_ids, strict=True):
            self._id_by_row[row] = item_id
            self._live_R[row] = item_id is not None
            if item_id is not None:
                self._row_by_id[item_id] = row
        changed = set(rows)
        self._tombstones = [row for row in self._tombstones if row not in changed]
        self._tombstones += [row for row, item_id in zip(rows, changes.item_ids, strict=True) if item_id is None]
        counted = np.frombuffer(changes.counted_rows, dtype="<i8")
        self._clicks_R[counted] = np.frombuffer(changes.clicks, dtype="<i8")
        self._recent_R[counted] = np.frombuffer(changes.recent, dtype="<f8")
        self._recent_scale = changes.recent_scale

    def _check(self, changes: CatalogueChanges, rows: list[int]) -> None:
        """Every row and item once, no item in two rows, no row without a word on what is in it."""
        counted = np.frombuffer(changes.counted_rows, dtype="<i8").tolist()
        named = [item_id for item_id in changes.item_ids if item_id is not None]
        changed = set(rows)
        fits = (
            changes.size >= self.size
            and changed.issuperset(range(self.size, changes.size))
            and len(changed) == len(rows) == len(changes.item_ids)
            and all(PADDING < row < changes.size for row in (*rows, *counted))
            and len(counted) == len(changes.clicks) // 8 == len(changes.recent) // 8
            and len(set(named)) == len(named)
            and all(self._row_by_id.get(item_id, rows[0]) in changed for item_id in named)
        )
        if not fits:
            raise ValueError("the changes belong to another catalogue; wait for the next full checkpoint")

    def copy(self) -> Catalogue:
        """The same, and independent of it from now on."""
        twin = Catalogue(max_items=self.max_items, half_life_clicks=self.half_life_clicks)
        twin._row_by_id, twin._id_by_row = OrderedDict(self._row_by_id), list(self._id_by_row)
        twin._tombstones, twin._fresh = list(self._tombstones), dict(self._fresh)
        twin._live_R, twin._clicks_R, twin._recent_R = self._live_R.copy(), self._clicks_R.copy(), self._recent_R.copy()
        twin._placed_R, twin._counted_R = self._placed_R.copy(), self._counted_R.copy()
        twin._recent_scale, twin._mark = self._recent_scale, self._mark
        return twin

    def same_as(self, other: Catalogue) -> bool:
        """Whether both have the same items in the same rows, with the same counts."""
        mine, theirs = self.size, other.size
        return (
            self._id_by_row == other._id_by_row
            and np.array_equal(self._clicks_R[:mine], other._clicks_R[:theirs])
            and np.array_equal(self._recent_R[:mine], other._recent_R[:theirs])
            and self._recent_scale == other._recent_scale
        )

    def to_document(self) -> bytes:
        """Everything that `from_document` needs, MessagePack; the same catalogue gives the same bytes."""
        assert not self._fresh, "take_fresh_rows before writing: a reader cannot know which weights are stale"
        return msgspec.msgpack.encode(
            CatalogueDocument(
                max_items=self.max_items,
                half_life_clicks=self.half_life_clicks,
                size=self.size,
                item_ids=list(self._row_by_id),
                rows=np.fromiter(self._row_by_id.values(), dtype="<i8", count=len(self)).tobytes(),
                tombstones=self._tombstones,
                clicks=self._clicks_R[: self.size].astype("<i8").tobytes(),
                recent=self._recent_R[: self.size].astype("<f8").tobytes(),
                recent_scale=self._recent_scale,
            )
        )

    @classmethod
    def from_document(cls, raw: bytes) -> Catalogue:
        """The catalogue that `to_document` wrote.

        Raises:
            ValueError: not such a document, or one whose parts contradict each other.
        """
        try:
            document = msgspec.msgpack.decode(raw, type=CatalogueDocument)
        except msgspec.DecodeError as error:
            raise ValueError(f"the catalogue cannot be read ({error}); use another checkpoint") from error
        rows = np.frombuffer(document.rows, dtype="<i8").tolist()
        if sorted([PADDING, *rows, *document.tombstones]) != list(range(document.size)):
            raise ValueError("the catalogue's rows contradict each other; use another checkpoint")
        catalogue = cls(max_items=document.max_items, half_life_clicks=document.half_life_clicks)
        catalogue._restore(document, rows)
        return catalogue

    def _place(self, item_id: str) -> int:
        row = self._tombstones.pop() if self._tombstones else self._append_row()
        self._id_by_row[row] = item_id
        self._row_by_id[item_id] = row
        self._live_R[row] = True
        self._placed_R[row] = self._counted_R[row] = self._mark
        self._fresh[row] = None
        return row

    def _append_row(self) -> int:
        self._id_by_row.append(None)
        self._make_room()
        return self.size - 1

    def _make_room(self) -> None:
        missing = self.capacity - len(self._live_R)
        if missing > 0:
            self._live_R = np.pad(self._live_R, (0, missing))
            self._clicks_R = np.pad(self._clicks_R, (0, missing))
            self._recent_R = np.pad(self._recent_R, (0, missing))
            self._placed_R = np.pad(self._placed_R, (0, missing))
            self._counted_R = np.pad(self._counted_R, (0, missing))

    def _restore(self, document: CatalogueDocument, rows: list[int]) -> None:
        self._id_by_row = [None] * document.size
        self._make_room()
        self._row_by_id = OrderedDict(zip(document.item_ids, rows, strict=True))
        for item_id, row in self._row_by_id.items():
            self._id_by_row[row] = item_id
        self._live_R[rows] = True
        self._tombstones = list(document.tombstones)
        self._clicks_R[: document.size] = np.frombuffer(document.clicks, dtype="<i8")
        self._recent_R[: document.size] = np.frombuffer(document.recent, dtype="<f8")
        self._recent_scale = document.recent_scale
