"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018), from item rows to hidden states.

Shapes: B sequences, T positions, D units, H heads, R rows of the item table, F rows that begin afresh.

A sequence is padded on the left: its newest item stands in the last slot, which always takes the last position
embedding, whatever the batch's length. Padding cannot leak, for no position attends to a padded one; what comes out at
a padded slot means nothing. The network is a function of its weights, its input and (while training) of the dropout
generator that is passed in: there is no training mode to forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from model.catalogue import PADDING
from model.dropout import add_dropped, dropout
from model.settings import ModelSettings

INITIAL_SCALE = 0.02
"""Standard deviation of new embeddings: small scores at first, and a few steps of Adam are enough to move them."""


class Block(nn.Module):
    """Causal self-attention, then a point-wise feed-forward network; eq. 2-6 of the paper.

    As in the paper, heads are concatenated without another projection, and dropout is on what each sub-layer adds.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        units = settings.units
        self.heads = settings.heads
        self.rate = settings.dropout
        self.norm = settings.norm
        self.attention_norm = nn.LayerNorm(units)
        self.query_key_value = nn.Linear(units, 3 * units, bias=False)
        self.forward_norm = nn.LayerNorm(units)
        self.inner = nn.Linear(units, units)
        self.outer = nn.Linear(units, units)

    def forward(
        self,
        input_BTD: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B 1 T T"],
        rng: np.random.Generator | None,
    ) -> Float[Tensor, "B T D"]:
        """Every position, from itself and those before it."""
        normed_BTD = self.attention_norm(input_BTD) if self.norm == "pre" else input_BTD
        query_BTD, key_BTD, value_BTD = torch.split(self.query_key_value(normed_BTD), input_BTD.shape[-1], dim=-1)
        attended_BTD = self._attend(query_BTD, key_BTD, value_BTD, mask)
        return self._feed_forward(self._join_attention(input_BTD, attended_BTD, rng), rng)

    def last(self, input_BTD: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 1 T"]) -> Float[Tensor, "B 1 D"]:
        """The last position only, for prediction: one query instead of T."""
        units = input_BTD.shape[-1]
        normed_BTD = self.attention_norm(input_BTD) if self.norm == "pre" else input_BTD
        query_weight, key_value_weight = torch.split(self.query_key_value.weight, [units, 2 * units])
        query_B1D = functional.linear(normed_BTD[:, -1:], query_weight)
        key_BTD, value_BTD = torch.split(functional.linear(normed_BTD, key_value_weight), units, dim=-1)
        attended_B1D = self._attend(query_B1D, key_BTD, value_BTD, mask)
        return self._feed_forward(self._join_attention(input_BTD[:, -1:], attended_B1D, None), None)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value), attn_mask=mask
        )
        return attended.transpose(1, 2).flatten(2)

    def _by_head(self, hidden: Tensor) -> Tensor:
        return hidden.view(*hidden.shape[:2], self.heads, -1).transpose(1, 2)

    def _join_attention(self, residual: Tensor, branch: Tensor, rng: np.random.Generator | None) -> Tensor:
        joined = add_dropped(residual, branch, rate=self.rate, rng=rng)
        return joined if self.norm == "pre" else self.attention_norm(joined)

    def _feed_forward(self, hidden: Tensor, rng: np.random.Generator | None) -> Tensor:
        normed = self.forward_norm(hidden) if self.norm == "pre" else hidden
        branch = self.outer(functional.relu(self.inner(normed)))
        joined = add_dropped(hidden, branch, rate=self.rate, rng=rng)
        return joined if self.norm == "pre" else self.forward_norm(joined)


class SASRec(nn.Module):
    """The network and its item table, which is shared between input and prediction.

    `item_RD` holds `capacity` rows, all zero until `reset_rows` gives them a beginning: what a row starts from does not
    depend on when the table grew.
    """

    def __init__(self, settings: ModelSettings, *, capacity: int, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self.item_RD = nn.Parameter(torch.zeros(capacity, settings.units))
        self.position_TD = nn.Parameter(torch.empty(settings.max_length, settings.units))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.final_norm = nn.LayerNorm(settings.units) if settings.norm == "pre" else nn.Identity()
        self._draw_dense(generator)

    @property
    def capacity(self) -> int:
        """Rows of the item table."""
        return self.item_RD.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where rows must be."""
        return self.item_RD.device

    def forward(self, rows_BT: Int[Tensor, "B T"], *, rng: np.random.Generator | None = None) -> Float[Tensor, "B T D"]:
        """The hidden state at every position, to be multiplied with the item table; dropout only with `rng`."""
        valid_BT = rows_BT != PADDING
        hidden_BTD = dropout(self._embed(rows_BT), rate=self.settings.dropout, rng=rng)
        mask = causal_mask(valid_BT)
        for block in self._layers:
            hidden_BTD = block(hidden_BTD, mask, rng)
        normed_BTD: Tensor = self.final_norm(hidden_BTD)
        return normed_BTD

    @torch.inference_mode()
    def encode_last(self, rows_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The hidden state at the last position only, for prediction; cheaper than `forward`, the same numbers."""
        valid_BT = rows_BT != PADDING
        hidden_BTD = self._embed(rows_BT)
        mask = causal_mask(valid_BT)
        for block in self._layers[:-1]:
            hidden_BTD = block(hidden_BTD, mask, None)
        for block in self._layers[-1:]:
            hidden_BTD = block.last(hidden_BTD, mask[:, :, -1:])
        last_BD: Tensor = self.final_norm(hidden_BTD[:, -1])
        return last_BD

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity`; what is learnt stays bit for bit, new rows are zero."""
        missing = capacity - self.capacity
        if missing > 0:
            self.item_RD = nn.Parameter(functional.pad(self.item_RD.detach(), (0, 0, 0, missing)))

    @torch.no_grad()
    def reset_rows(self, rows_F: Int[np.ndarray, " F"], rng: np.random.Generator) -> None:
        """Gives rows their first embedding, drawn in the order of `rows_F`."""
        assert PADDING not in rows_F, "the padding row stays zero"
        drawn_FD = rng.standard_normal((len(rows_F), self.settings.units), dtype=np.float32) * np.float32(INITIAL_SCALE)
        self.item_RD[torch.from_numpy(rows_F).to(self.device)] = torch.from_numpy(drawn_FD).to(self.device)

    def tensors(self, *, rows: int) -> dict[str, Tensor]:
        """The weights for a checkpoint, with the first `rows` rows of the item table."""
        tensors = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        return tensors | {"item_RD": tensors["item_RD"][:rows]}

    @classmethod
    def from_tensors(cls, settings: ModelSettings, tensors: Mapping[str, Tensor], *, capacity: int) -> SASRec:
        """The network that gave `tensors`, with room for `capacity` rows.

        Raises:
            ValueError: tensors that do not fit the settings.
        """
        stored_RD = tensors["item_RD"]
        model = cls(settings, capacity=max(capacity, stored_RD.shape[0]), generator=torch.Generator())
        padded_RD = functional.pad(stored_RD, (0, 0, 0, model.capacity - stored_RD.shape[0]))
        try:
            model.load_state_dict({**tensors, "item_RD": padded_RD})
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the model's settings: {error}; use another checkpoint") from error
        return model

    @property
    def _layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _embed(self, rows_BT: Tensor) -> Tensor:
        length = rows_BT.shape[1]
        if length > self.settings.max_length:
            raise ValueError(f"{length} positions, the model knows {self.settings.max_length}; pass only the newest")
        item_BTD = functional.embedding(rows_BT, self.item_RD, padding_idx=PADDING, sparse=True)
        # Scaled as in "Attention is all you need", so that items and positions speak equally loud.
        return torch.add(
            self.position_TD[self.settings.max_length - length :], item_BTD, alpha=self.settings.units**0.5
        )

    @torch.no_grad()
    def _draw_dense(self, generator: torch.Generator) -> None:
        self.position_TD.normal_(0.0, INITIAL_SCALE, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def causal_mask(valid_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Who may look at whom: [b, 0, t, s] where s is a real slot not after t, or t itself.

    A padded slot looks at itself alone, so that no softmax is taken over nothing.
    """
    length = valid_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=valid_BT.device).tril()
    itself_TT = torch.eye(length, dtype=torch.bool, device=valid_BT.device)
    return ((causal_TT & valid_BT[:, None, :]) | itself_TT)[:, None]
