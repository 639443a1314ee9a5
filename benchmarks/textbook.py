"""The step that most PyTorch ports of SASRec make, written from the paper: the baseline of `benchmarks.training`.

Every sequence is padded to the full length, attention is `nn.MultiheadAttention`, dropout is torch's own, and Adam is
dense. Shapes: B sequences, T positions, D units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.catalogue import PADDING
from model.settings import ModelSettings


class TextbookBlock(nn.Module):
    """Attention and a point-wise feed-forward network, each normed before; the ports add to what was normed.

    Dropout falls on the weights of attention, not on what comes out of it, and on both layers of the feed-forward.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        units = settings.units
        self.attention_norm = nn.LayerNorm(units)
        self.attention = nn.MultiheadAttention(units, settings.heads, settings.dropout, batch_first=True)
        self.forward_norm = nn.LayerNorm(units)
        self.feed_forward = nn.Sequential(
            nn.Linear(units, units),
            nn.Dropout(settings.dropout),
            nn.ReLU(),
            nn.Linear(units, units),
            nn.Dropout(settings.dropout),
        )

    def forward(self, input_BTD: Tensor, later_TT: Tensor) -> Tensor:
        """Every position, padded or not."""
        query_BTD = self.attention_norm(input_BTD)
        attended_BTD, _ = self.attention(query_BTD, input_BTD, input_BTD, attn_mask=later_TT, need_weights=False)
        hidden_BTD = query_BTD + attended_BTD
        normed_BTD = self.forward_norm(hidden_BTD)
        added_BTD: Tensor = normed_BTD + self.feed_forward(normed_BTD)
        return added_BTD


class TextbookSASRec(nn.Module):
    """SASRec as it is usually ported."""

    def __init__(self, settings: ModelSettings, *, rows: int) -> None:
        super().__init__()
        self.item = nn.Embedding(rows, settings.units, padding_idx=PADDING)
        self.position = nn.Embedding(settings.max_length, settings.units)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(TextbookBlock(settings) for _ in range(settings.blocks))
        self.final_norm = nn.LayerNorm(settings.units)

    def forward(self, rows_BT: Tensor) -> Tensor:
        """The hidden state of every position."""
        length = rows_BT.shape[1]
        valid_BT1 = (rows_BT != PADDING)[:, :, None]
        later_TT = torch.ones(length, length, dtype=torch.bool, device=rows_BT.device).triu(diagonal=1)
        scaled_BTD = self.item(rows_BT) * self.item.embedding_dim**0.5
        hidden_BTD = self.dropout(scaled_BTD + self.position.weight) * valid_BT1
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, later_TT) * valid_BT1
        normed_BTD: Tensor = self.final_norm(hidden_BTD)
        return normed_BTD


class TextbookStep:
    """Binary cross-entropy with one negative for each position, learnt by dense Adam."""

    def __init__(self, settings: ModelSettings, *, rows: int, learning_rate: float) -> None:
        self.model = TextbookSASRec(settings, rows=rows)
        self._adam = torch.optim.Adam(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.98))

    def __call__(self, rows_BT: Tensor, target_BT: Tensor, negative_BT: Tensor) -> float:
        """The loss of the step; positions whose target is PADDING do not count."""
        hidden_BTD = self.model(rows_BT)
        wanted_BT = target_BT != PADDING
        positive_BT = (hidden_BTD * self.model.item(target_BT)).sum(dim=-1)
        other_BT = (hidden_BTD * self.model.item(negative_BT)).sum(dim=-1)
        loss = functional.softplus(-positive_BT[wanted_BT]).mean() + functional.softplus(other_BT[wanted_BT]).mean()
        self._adam.zero_grad()
        torch.autograd.backward(loss)
        self._adam.step()
        return float(loss.detach())
