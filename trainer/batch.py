"""From clicks to training sequences: one user's run of clicks is read by the network once, not once per click.

A click whose context is the context of the user's click before it, plus that click, continues the same chain. A chain
is one sequence with several targets, so a burst of clicks costs little more than one of them. Only a further click on
one slate is learnt in a sequence of its own: the history at the time of the request is another one. Shapes: B
sequences, T positions, N clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.catalogue import PADDING
from stream.examples import ClickExample


class Chain(NamedTuple):
    """A user's items, oldest first; the last `len(examples)` of them are the clicks of those examples."""

    items: tuple[str, ...]
    examples: tuple[int, ...]
    """Where each of these clicks stands in the micro-batch."""


class Stretch(NamedTuple):
    """Items, oldest first; the last `len(weights)` of them are learnt, each with its weight, from those before it."""

    items: tuple[str, ...]
    weights: tuple[float, ...]


class Group(NamedTuple):
    """Sequences as tensors, padded on the left."""

    row_BT: Int[Tensor, "B T"]
    target_BT: Int[Tensor, "B T"]
    """The item that follows each position; PADDING where nothing is learnt."""
    weight_BT: Float[Tensor, "B T"]


def coalesce(chains: Iterable[Chain], *, max_length: int, min_context: int) -> list[Chain]:
    """Every click of these once, the first ones of unknown users (no context, so nothing to predict from) left out.

    A click sees the last items of its own context: all of them up to `max_length` when it stands in a piece alone, in
    a long chain at least `min_context` of them (or all, where there are fewer).
    """
    return [piece for chain in chains for piece in cut(chain, max_length=max_length, min_context=min_context)]


def runs(clicks: Sequence[ClickExample]) -> list[Chain]:
    """Every click once, those of one user that continue one another as one chain, however long.

    Where contexts do not chain, the clicks stand in separate chains.
    """
    items: list[list[str]] = []
    examples: list[list[int]] = []
    newest: dict[str, int] = {}
    for index, click in enumerate(clicks):
        chain = newest.get(click.user_id)
        if chain is not None and _continues(click, clicks[examples[chain][-1]]):
            items[chain].append(click.item_id)
            examples[chain].append(index)
        else:
            newest[click.user_id] = len(items)
            items.append([*click.context, click.item_id])
            examples.append([index])
    return [Chain(tuple(some), tuple(places)) for some, places in zip(items, examples, strict=True)]


def _continues(click: ClickExample, before: ClickExample) -> bool:
    """Whether the context is the one before, plus its click, perhaps without the oldest item."""
    if not click.context or click.context[-1] != before.item_id:
        return False
    dropped = 1 + len(before.context) - len(click.context)
    return dropped in (0, 1) and click.context[:-1] == before.context[dropped:]


def cut(chain: Chain, *, max_length: int, min_context: int) -> Iterator[Chain]:
    """Pieces that the network can read: at most `max_length` items before the last target of each."""
    context = len(chain.items) - len(chain.examples)
    done = 0 if context else 1
    while done < len(chain.examples):
        before = context + done
        needed = min(before, min_context, max_length)
        targets = min(len(chain.examples) - done, max_length - needed + 1)
        visible = min(before, max_length - targets + 1)
        yield Chain(
            chain.items[before - visible : before + targets],
            chain.examples[done : done + targets],
        )
        done += targets


def in_sequence(clicks: Sequence[ClickExample], weight_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The weights where the clicks stand in their user's sequence: none for one that followed another since its slate.

    1/p holds for the history at the time of the request (docs/propensities.md section 4).
    """
    since_N = np.array([clicks_since(click) for click in clicks], dtype=np.int64)
    return np.where(since_N > 0, 0.0, weight_N)


def at_request(
    clicks: Sequence[ClickExample], weight_N: Float[np.ndarray, " N"], *, max_length: int
) -> Iterator[Stretch]:
    """The clicks that have no weight in their sequence, each behind the history at the time of its request."""
    for click, weight in zip(clicks, weight_N.tolist(), strict=True):
        since = clicks_since(click)
        history = click.context[: len(click.context) - since][-max_length:]
        if since and history and weight:
            yield Stretch((*history, click.item_id), (weight,))


def clicks_since(click: ClickExample) -> int:
    """Items of the context that are newer than the slate the click belongs to."""
    return 0 if click.served is None else click.served.clicks_since


def weighted(chain: Chain, weight_N: Float[np.ndarray, " N"]) -> Stretch:
    """The chain with the weight of each of its clicks."""
    return Stretch(chain.items, tuple(weight_N[list(chain.examples)].tolist()))


def collate(stretches: Iterable[Stretch], rows_of: Callable[[Sequence[str]], np.ndarray]) -> list[Group]:
    """One group of tensors, or none: the network drops their padding before it computes.

    Positions without weight, or whose item has no row, are no targets: what teaches nothing costs nothing.
    """
    known = [stretch for stretch in stretches if len(stretch.items) > 1]
    groups = [_group(known, rows_of)] if known else []
    return [group for group in groups if (group.target_BT != PADDING).any()]


def _group(stretches: Sequence[Stretch], rows_of: Callable[[Sequence[str]], np.ndarray]) -> Group:
    length = max(len(stretch.items) for stretch in stretches)
    row_BL = np.full((len(stretches), length), PADDING, dtype=np.int64)
    weight_BL = np.zeros((len(stretches), length), dtype=np.float32)
    for index, stretch in enumerate(stretches):
        row_BL[index, length - len(stretch.items) :] = rows_of(stretch.items)
        # The first item follows on nothing, and nothing foresees it.
        weights = stretch.weights[-(len(stretch.items) - 1) :]
        weight_BL[index, length - len(weights) :] = weights
    target_BL = np.where(weight_BL > 0, row_BL, PADDING)
    return Group(
        torch.from_numpy(row_BL[:, :-1].copy()),
        torch.from_numpy(target_BL[:, 1:].copy()),
        torch.from_numpy(weight_BL[:, 1:].copy()),
    )
