"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018), from item rows to hidden states.

Shapes: B sequences, T positions, D units, H heads, R rows of the item table, F rows that
begin afresh, S last positions, E = 2 D.

A sequence is padded on the left: its newest item stands in the last slot, which always takes the last position
embedding, whatever the batch's length. Padding cannot leak, for no position attends to a padded one; what comes out at
a padded slot means nothing. The network is a function of its weights, its input and (while training) of the dropout
generator that is passed in: there is no training mode to forget.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        mask_B1ST: Float[Tensor, "B 1 S T"],
        rng: np.random.Generator | None,
    ) -> Float[Tensor, "B S D"]:
        """The last S positions, each from itself and those before it."""
        normed_BTD = self.attention_norm(input_BTD) if self.norm == "pre" else input_BTD
        query_BSD, key_BTD, value_BTD = self._project(normed_BTD, mask_B1ST.shape[2])
        attended_BSD = self._attend(query_BSD, key_BTD, value_BTD, mask_B1ST)
        residual_BSD = input_BTD[:, -mask_B1ST.shape[2] :]
        return self._feed_forward(self._join_attention(residual_BSD, attended_BSD, rng), rng)

    def _project(self, normed_BTD: Tensor, last: int) -> tuple[Tensor, ...]:
        """Queries of the last positions, keys and values of all."""
        units = normed_BTD.shape[-1]
        if last == normed_BTD.shape[1]:
            return torch.split(self.query_key_value(normed_BTD), units, dim=-1)
        query_weight, key_value_weight = torch.split(self.query_key_value.weight, [units, 2 * units])
        key_value_BTE = functional.linear(normed_BTD, key_value_weight)
        query_BSD = functional.linear(normed_BTD[:, -last:], query_weight)
        return query_BSD, *torch.split(key_value_BTE, units, dim=-1)

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

    def forward(
        self, rows_BT: Int[Tensor, "B T"], *, last: int | None = None, rng: np.random.Generator | None = None
    ) -> Float[Tensor, "B S D"]:
        """Hidden states, to be multiplied with the item table: of every position, or only of the `last` S.

        Fewer positions cost less, for the last block works on them alone. Dropout only with `rng`.
        """
        hidden_BTD = dropout(self._embed(rows_BT), rate=self.settings.dropout, rng=rng)
        mask_B1TT = attention_mask(rows_BT != PADDING, dtype=hidden_BTD.dtype)
        first = rows_BT.shape[1] - (last or rows_BT.shape[1])
        for block in self.blocks[:-1]:
            hidden_BTD = block(hidden_BTD, mask_B1TT, rng)
        for block in self.blocks[-1:]:
            hidden_BTD = block(hidden_BTD, mask_B1TT[:, :, first:], rng)
        normed_BSD: Tensor = self.final_norm(hidden_BTD if self.blocks else hidden_BTD[:, first:])
        return normed_BSD

    @torch.inference_mode()
    def encode_last(self, rows_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The hidden state at the newest position, for prediction."""
        hidden_BD: Tensor = self(rows_BT, last=1)[:, 0]
        return hidden_BD

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


def attention_mask(valid_BT: Bool[Tensor, "B T"], *, dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Zero where position t may look at s: s is a real slot not after t, or t itself; else -inf.

    A padded slot looks at itself alone, so that no softmax is taken over nothing.
    """
    length = valid_BT.shape[1]
    later_TT = torch.ones(length, length, dtype=torch.bool, device=valid_BT.device).triu(diagonal=1)
    itself_TT = torch.eye(length, dtype=torch.bool, device=valid_BT.device)
    hidden_BTT = (later_TT | ~valid_BT[:, None, :]) & ~itself_TT
    mask_BTT = torch.zeros(hidden_BTT.shape, dtype=dtype, device=valid_BT.device)
    return mask_BTT.masked_fill_(hidden_BTT, -torch.inf)[:, None]
