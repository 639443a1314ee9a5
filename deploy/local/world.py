"""The truth behind the simulated audience: what there is, who likes what, and what people do (no Kafka, no clock).

People come in sessions with one category in mind, like some categories more than others all their life, and follow a
series part by part: that order is what a model of sequences can learn and popularity cannot. A slate is looked at by
the position-based model (docs/propensities.md section 1): slot k is examined with probability
1 / (k + 1) ** position_bias, whatever stands there, and an examined item is clicked by taste alone.

Shapes: I items, C categories, U users, K slots of a slate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.local.settings import AudienceSettings
from deploy.local.titles import PARTS, SERIES
from stream.events import Item

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOCUS = 4.5  # in units of log-odds, as all tastes: the category that a session is about
NEXT_PART = 3.5
TASTE_SPREAD = 1.0
QUALITY_SPREAD = 0.7
INDIFFERENCE = 4.0  # the appeal at which an examined item is clicked half of the time
SESSION_CLICKS = 8  # mean length of a session
REMEMBERED = 30  # nobody clicks again what they clicked so recently


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Items, users and tastes; drawn once, then fixed."""

    items: tuple[Item, ...]
    users: tuple[str, ...]
    category_I: Integers
    quality_I: Floats
    next_part_I: Integers
    """The item that continues the series; -1 after its last part."""
    taste_UC: Floats
    position_bias: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visitor:
    """What a user has in mind just now."""

    user: int
    focus: int
    """The category that the session is about."""
    recent: tuple[int, ...] = ()
    """The last items clicked, oldest first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What came of a slate: which slots were examined, and which of those were clicked."""

    examined: tuple[int, ...]
    clicked: tuple[int, ...]


def make_world(settings: AudienceSettings) -> World:
    """The world of that seed: the same settings, the same world."""
    rng = np.random.default_rng(settings.seed)
    names = [(category, series, part) for category in SERIES for series in SERIES[category] for part in range(PARTS)]
    part_I = np.array([part for _, _, part in names])
    row_I = np.arange(len(names))
    return World(
        items=tuple(_item(row, *name) for row, name in enumerate(names)),
        users=tuple(f"user-{user:05}" for user in range(settings.users)),
        category_I=row_I // (len(names) // len(SERIES)),
        quality_I=rng.normal(0.0, QUALITY_SPREAD, len(names)),
        next_part_I=np.where(part_I < PARTS - 1, row_I + 1, -1),
        taste_UC=rng.normal(0.0, TASTE_SPREAD, (settings.users, len(SERIES))),
        position_bias=settings.position_bias,
    )


def arrive(world: World, user: int, rng: np.random.Generator) -> Visitor:
    """A user who opens the page with a category in mind, mostly one of the favourites."""
    return Visitor(user=user, focus=_draw_focus(world, user, rng))


def appeal(world: World, visitor: Visitor) -> Floats:
    """How much each item would please just now, as log-odds; -inf for what was clicked recently. Shape [I]."""
    appeal_I: Floats = world.quality_I + world.taste_UC[visitor.user][world.category_I]
    appeal_I += FOCUS * (world.category_I == visitor.focus)
    if visitor.recent and (next_part := world.next_part_I[visitor.recent[-1]]) >= 0:
        appeal_I[next_part] += NEXT_PART
    appeal_I[list(visitor.recent)] = -np.inf
    return appeal_I


def browse(world: World, visitor: Visitor, rng: np.random.Generator) -> int:
    """The item that a user finds without help: drawn from the whole catalogue by the softmax of its appeal."""
    return int(np.argmax(appeal(world, visitor) + rng.gumbel(size=len(world.items))))


def look(world: World, visitor: Visitor, slate_K: Sequence[int | None], rng: np.random.Generator) -> Look:
    """Examines slots by position, then clicks by taste; None stands for an item that this world does not know."""
    appeal_I = appeal(world, visitor)
    examined_K = rng.random(len(slate_K)) < examination(len(slate_K), position_bias=world.position_bias)
    appeal_K = np.array([-np.inf if item is None else appeal_I[item] for item in slate_K], dtype=np.float64)
    clicked_K = examined_K & (rng.random(len(slate_K)) < click_probability(appeal_K))
    return Look(examined=_slots(examined_K), clicked=_slots(clicked_K))


def examination(slots: int, *, position_bias: float) -> Floats:
    """The probability that each slot is looked at. Shape [K]."""
    return np.asarray(1.0 / np.arange(1, slots + 1) ** position_bias)


def click_probability(appeal_K: Floats) -> Floats:
    """The probability that an examined item is clicked. Shape [K]."""
    return np.asarray(1.0 / (1.0 + np.exp(INDIFFERENCE - appeal_K)))


def after_click(world: World, visitor: Visitor, item: int, rng: np.random.Generator) -> Visitor:
    """The user after the click: now and then the session ends, and the next one may be about something else."""
    ends = rng.random() < 1.0 / SESSION_CLICKS
    return Visitor(
        user=visitor.user,
        focus=_draw_focus(world, visitor.user, rng) if ends else int(world.category_I[item]),
        recent=(*visitor.recent, item)[-REMEMBERED:],
    )


def _draw_focus(world: World, user: int, rng: np.random.Generator) -> int:
    taste_C = world.taste_UC[user]
    return int(np.argmax(taste_C + rng.gumbel(size=len(taste_C))))


def _item(row: int, category: str, series: str, part: int) -> Item:
    return Item(item_id=f"item-{row:04}", title=f"{series}, part {part + 1}", category=category)


def _slots(chosen_K: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(slot) for slot in np.flatnonzero(chosen_K))
