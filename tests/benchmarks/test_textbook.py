"""The named baseline is the network that it is named after."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.textbook import TextbookBlock, TextbookSASRec, TextbookStep
from model.settings import ModelSettings

SETTINGS = ModelSettings(max_length=6, units=8, blocks=2, heads=2, dropout=0.2)
ROWS = 21


def later(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)


def network() -> TextbookSASRec:
    torch.manual_seed(3)
    return TextbookSASRec(SETTINGS, rows=ROWS).eval()


def test_a_block_is_scaled_attention_of_earlier_positions_and_two_linear_layers() -> None:
    torch.manual_seed(1)
    block = TextbookBlock(SETTINGS).eval()
    nn.init.normal_(block.attention.in_proj_bias)
    input_BTD = torch.randn(3, 5, 8)

    block_BTD = block(input_BTD, later(5))

    query_BTD = block.attention_norm(input_BTD)
    q_BTD, k_BTD, v_BTD = (
        functional.linear(of, weight, bias).view(3, 5, 2, 4).transpose(1, 2)
        for of, weight, bias in zip(
            (query_BTD, input_BTD, input_BTD),
            block.attention.in_proj_weight.chunk(3),
            block.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    score_BHTT = (q_BTD @ k_BTD.transpose(2, 3) / math.sqrt(4)).masked_fill(later(5), -math.inf)
    attended_BTD = (score_BHTT.softmax(dim=-1) @ v_BTD).transpose(1, 2).reshape(3, 5, 8)
    hidden_BTD = query_BTD + block.attention.out_proj(attended_BTD)
    normed_BTD = block.forward_norm(hidden_BTD)
    first, _, _, second, _ = block.feed_forward
    torch.testing.assert_close(block_BTD, normed_BTD + second(torch.relu(first(normed_BTD))))


def test_attention_drops_its_weights_and_nothing_that_comes_out_of_it() -> None:
    """A position that sees only itself either sees itself, scaled up, or nothing: never some of its units."""
    block = TextbookBlock(SETTINGS).train()
    with torch.no_grad():
        block.attention.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        block.attention.out_proj.weight.copy_(torch.eye(8))
    one_B1D = torch.rand(400, 1, 8) + 1.0

    seen_B1D, _ = block.attention(one_B1D, one_B1D, one_B1D, attn_mask=later(1), need_weights=False)

    share_BHD = (seen_B1D / one_B1D).view(400, 2, 4)
    is_dropped_BH = (share_BHD == 0.0).all(dim=2)
    assert 0.1 < float(is_dropped_BH.float().mean()) < 0.3
    torch.testing.assert_close(share_BHD[~is_dropped_BH], torch.full_like(share_BHD[~is_dropped_BH], 1.25))


def test_no_position_knows_what_comes_later() -> None:
    model = network()
    rows_BT = torch.tensor([[0, 0, 4, 5, 6, 7]])
    changed_BT = torch.tensor([[0, 0, 4, 5, 9, 9]])

    hidden_BTD, changed_BTD = model(rows_BT), model(changed_BT)

    assert hidden_BTD.shape == (1, 6, 8)
    torch.testing.assert_close(hidden_BTD[:, :4], changed_BTD[:, :4])
    assert not torch.allclose(hidden_BTD[:, 4:], changed_BTD[:, 4:])


def test_positions_without_a_target_do_not_count() -> None:
    rows_BT = torch.tensor([[0, 0, 4, 5, 6, 7]])
    target_BT = torch.tensor([[0, 0, 5, 6, 7, 8]])
    steps = [
        TextbookStep(ModelSettings(max_length=6, units=8, dropout=0.0), rows=ROWS, learning_rate=0.01) for _ in "ab"
    ]
    steps[1].model.load_state_dict(steps[0].model.state_dict())

    losses = [
        step(rows_BT, target_BT, torch.where(target_BT == 0, padded, 11))
        for step, padded in zip(steps, (1, 2), strict=True)
    ]

    assert losses[0] == pytest.approx(losses[1])


def test_what_is_learnt_again_and_again_is_known_in_the_end() -> None:
    torch.manual_seed(2)
    step = TextbookStep(SETTINGS, rows=ROWS, learning_rate=0.01)
    rows_BT = torch.randint(1, ROWS, (8, 6))
    target_BT, negative_BT = rows_BT % (ROWS - 1) + 1, (rows_BT + 5) % (ROWS - 1) + 1

    losses = [step(rows_BT, target_BT, negative_BT) for _ in range(60)]

    assert losses[-1] < 0.3 * losses[0]
