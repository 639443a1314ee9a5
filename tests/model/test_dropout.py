"""Dropout by counter, from a seed that a generator gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.dropout import Dropout, _mixed_number, kept_by_torch

POSITIONS = np.arange(1_000)
LIKE = torch.ones(1_000, 1_000)


def mask(rate: float, *, seed: int = 1, site: int = 0) -> torch.Tensor:
    return Dropout(rate, seed).mask(POSITIONS, like=LIKE, site=site)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_as_many_units_are_dropped_as_was_asked_for(rate: float) -> None:
    drawn = mask(rate)

    dropped = float((drawn == 0).double().mean())
    assert dropped == pytest.approx(rate, abs=4 * (rate * (1 - rate) / drawn.numel()) ** 0.5)
    assert float(drawn.double().mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 64, 1_000, 1_001])
def test_units_are_dropped_independently_of_those_beside_and_below(distance: int) -> None:
    dropped = mask(0.5).flatten() == 0

    both = float((dropped[distance:] & dropped[:-distance]).double().mean())
    assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1e6) ** 0.5 * 1.5)


@pytest.mark.parametrize(("seed", "site"), [(2, 0), (1, 1), (1 << 63, 0)])
def test_another_seed_or_site_drops_independently(seed: int, site: int) -> None:
    both = (mask(0.5) == 0) & (mask(0.5, seed=seed, site=site) == 0)

    assert float(both.double().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1e6) ** 0.5 * 1.5)


def test_what_is_dropped_at_a_position_does_not_depend_on_the_others() -> None:
    dropout = Dropout(0.3, 5)
    some = np.array([[7, 3], [900, 3]])

    alone = dropout.mask(some, like=torch.ones(2, 2, 1_000), site=0)

    assert torch.equal(alone, mask(0.3, seed=5)[torch.from_numpy(some)])


def test_a_count_of_units_that_is_no_multiple_of_four_is_covered() -> None:
    assert Dropout(0.5, 1).mask(np.arange(3), like=torch.ones(3, 7), site=0).shape == (3, 7)


@pytest.mark.parametrize("seed", [0, 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("units", [7, 64])
def test_torch_keeps_the_same_units_wherever_it_computes(seed: int, units: int) -> None:
    position = np.array([[0, 3], [900, 1 << 40]])
    dropout = Dropout(0.3, seed)

    expected = dropout.mask(position, like=torch.ones(2, 2, units), site=2) > 0

    key = _mixed_number(seed + 3 * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    assert torch.equal(kept_by_torch(torch.from_numpy(position), key, units, dropout.dropped), expected)


def test_every_pass_gets_a_seed_of_its_own() -> None:
    rng = np.random.default_rng(1)
    first, second = Dropout.drawn(0.5, rng), Dropout.drawn(0.5, rng)

    assert first == Dropout.drawn(0.5, np.random.default_rng(1))
    assert first != second


def test_nothing_is_dropped_without_a_generator_or_a_rate() -> None:
    assert Dropout.drawn(0.5, None) is None
    assert Dropout.drawn(0.0, np.random.default_rng(1)) is None


def test_the_bits_are_those_of_splitmix64() -> None:
    """The first two numbers of SplitMix64 seeded with zero, as its authors' program prints them."""
    zero = Dropout(0.5, 0)
    from_counter = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]

    key_is_first = np.array(from_counter[:1], dtype=np.uint64)
    assert (zero.mask(np.array([0]), like=torch.ones(1, 4), site=0) == 0).tolist() == [
        (_mixed(int(key_is_first[0])).view(np.uint16) < zero.dropped).tolist()
    ]


def _mixed(number: int) -> np.ndarray:
    mixed = number
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return np.array([mixed ^ (mixed >> 31)], dtype=np.uint64)
