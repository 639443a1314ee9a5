"""The newest hidden states by one native call beside those of the network in torch."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from model import sasrec
from model.catalogue import PADDING
from model.native.functions import kernels
from model.sasrec import SASRec
from model.settings import ModelSettings

ROWS = 40


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if kernels() is None:
        pytest.skip("no native kernels: there is no C++ compiler, or SASREC_NATIVE is off")


def network(settings: ModelSettings) -> SASRec:
    """With weights that matter in every place."""
    made = SASRec(settings, capacity=ROWS, generator=torch.Generator())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        made.item_RD[PADDING] = 0.0
    return made


def users(*lengths: int, longest: int) -> torch.Tensor:
    """Padded on the left."""
    generator = torch.Generator().manual_seed(6)
    row_BT = torch.randint(1, ROWS, (len(lengths), longest), generator=generator)
    for row_T, length in zip(row_BT, lengths, strict=True):
        row_T[: longest - length] = PADDING
    return row_BT


def by_torch(model: SASRec, row_BT: torch.Tensor, patch: pytest.MonkeyPatch) -> torch.Tensor:
    with patch.context() as torch_alone:
        torch_alone.setattr(sasrec, "runs_natively", lambda *_, **__: False)
        return model.encode_last(row_BT)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("units", "heads", "blocks"), [(8, 1, 1), (12, 1, 2), (50, 1, 2), (24, 2, 3), (30, 3, 2)])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_call_gives_what_the_network_gives(
    norm: Literal["pre", "post"], units: int, heads: int, blocks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(ModelSettings(max_length=20, units=units, heads=heads, blocks=blocks, norm=norm))
    row_BT = users(20, 1, 0, 7, 3, 0, 20, 2, longest=20)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    found_BD = model.encode_last(row_BT)

    torch.set_num_threads(before)
    torch.testing.assert_close(found_BD, by_torch(model, row_BT, monkeypatch), rtol=1e-4, atol=1e-5)
    assert not found_BD[[2, 5]].any()


def test_sequences_longer_than_what_goes_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(ModelSettings(max_length=300, units=16, blocks=2))
    row_BT = users(300, 299, 12, 250, longest=300)

    torch.testing.assert_close(model.encode_last(row_BT), by_torch(model, row_BT, monkeypatch), rtol=1e-4, atol=1e-5)


def test_the_company_of_others_changes_nothing_but_the_last_digits() -> None:
    model = network(ModelSettings(max_length=30, units=20, blocks=2))
    row_BT = users(*range(1, 31), longest=30)

    together = model.encode_last(row_BT)

    for user in range(30):
        torch.testing.assert_close(model.encode_last(row_BT[user : user + 1])[0], together[user], rtol=1e-4, atol=1e-5)


def test_sequences_longer_than_the_network_knows_are_refused() -> None:
    model = network(ModelSettings(max_length=4, units=8, blocks=1))

    with pytest.raises(ValueError, match="pass only the newest"):
        model.encode_last(users(5, longest=5))


def test_nobody_is_no_mistake() -> None:
    model = network(ModelSettings(max_length=4, units=8, blocks=1))

    assert model.encode_last(torch.empty(0, 4, dtype=torch.int64)).shape == (0, 8)
    assert not model.encode_last(torch.zeros(2, 0, dtype=torch.int64)).any()
