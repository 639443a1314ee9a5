"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018), from item rows to hidden states.

Shapes: B sequences, T positions, D units, H heads of K units, E = 2 D, R rows of the item table, F rows that begin
afresh, G sequences of similar length, S last positions or slots that ask, P positions of all sequences one after
another (in `states_at` the wanted ones), Q of these that come out.

Sequences are packed: no slot is padded, and what is not wanted is not computed. The newest item of a sequence always
takes the last position embedding. The network is a function of its weights, its input and (while training) of the
dropout generator that is passed in: there is no training mode to forget.

What the network computes stands here, in torch. On a CPU `model/native` computes the same, several times faster, where
a C++ compiler is found; dropout falls on the same units either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from model.catalogue import PADDING
from model.checked import existing_rows
from model.dropout import Dropout, Kept
from model.fixed_shapes import Bucket, buckets_of, compiled, through
from model.lengths import Packed, length_groups, packed
from model.native.functions import Shape, native_block, native_embedding, native_norm, runs_natively
from model.native.newest import Prepared, Weights
from model.one_thread import in_one_thread
from model.settings import ModelSettings

INITIAL_SCALE = 0.02
"""Standard deviation of new embeddings: small scores at first, and a few steps of Adam are enough to move them."""
EMBEDDING_SITE = 0
"""Where units are dropped first; the blocks' sites follow, two each."""


class Slots(NamedTuple):
    """Sequences of similar length, padded on the right, where causality alone hides the padding from every position."""

    position_BT: Int[np.ndarray, "B T"]
    """Among all positions of the packed batch; any number where padded."""
    asking_BS: Int[Tensor, "B S"]
    """The last S slots of each sequence; slot 0 where a sequence is shorter."""
    wanted_BS: Bool[Tensor, "B S"]
    """Which of them come out."""
    is_all: bool
    """Whether every slot asks, padded ones too, and slot s is number s of those that do."""

    def asking(self) -> Int[Tensor, "B S"] | None:
        """As a block takes it."""
        return None if self.is_all else self.asking_BS

    def asking_positions(self) -> Int[np.ndarray, "B S"]:
        """Of the slots that ask, among all positions of the packed batch."""
        position_BS: np.ndarray = np.take_along_axis(self.position_BT, self.asking_BS.cpu().numpy(), axis=1)
        return position_BS

    def wanted_positions(self) -> Int[Tensor, " Q"]:
        """Of what comes out, among all positions of the packed batch."""
        return torch.from_numpy(self.asking_positions()).to(self.asking_BS.device)[self.wanted_BS]


class Block(nn.Module):
    """Causal self-attention, then a point-wise feed-forward network; eq. 2-6 of the paper.

    As in the paper, heads are concatenated without another projection, and dropout is on what each sub-layer adds.
    """

    def __init__(self, settings: ModelSettings, *, site: int) -> None:
        super().__init__()
        units = settings.units
        self.shape = Shape(settings.heads, settings.norm, site)
        self.attention_norm = nn.LayerNorm(units)
        self.query_key_value = nn.Linear(units, 3 * units, bias=False)
        self.forward_norm = nn.LayerNorm(units)
        self.inner = nn.Linear(units, units)
        self.outer = nn.Linear(units, units)

    def forward(
        self, input_BTD: Float[Tensor, "B T D"], asking_BS: Int[Tensor, "B S"] | None, kept: Kept | None
    ) -> Float[Tensor, "B S D"]:
        """The slots that ask, each from itself and those before it; None: every slot asks."""
        normed_BTD = self.attention_norm(input_BTD) if self.shape.norm == "pre" else input_BTD
        attended_BSD = self._attend(normed_BTD, asking_BS)
        joined_BSD = at(input_BTD, asking_BS) + (attended_BSD if kept is None else attended_BSD * kept.attended_BSD)
        if self.shape.norm == "post":
            joined_BSD = self.attention_norm(joined_BSD)
        normed_BSD = self.forward_norm(joined_BSD) if self.shape.norm == "pre" else joined_BSD
        branch_BSD = self.outer(functional.relu(self.inner(normed_BSD)))
        summed_BSD = joined_BSD + (branch_BSD if kept is None else branch_BSD * kept.forwarded_BSD)
        output_BSD: Tensor = self.forward_norm(summed_BSD) if self.shape.norm == "post" else summed_BSD
        return output_BSD

    def natively(
        self, input_PD: Float[Tensor, "P D"], sequences: Packed, dropout: Dropout | None
    ) -> Float[Tensor, "Q D"]:
        """The same, for the last positions of packed sequences, by the native kernels."""
        return native_block(input_PD, self.weights, sequences, self.shape, dropout)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """In the order of `enum Weight` in model/native/weights.h."""
        return (
            *(self.attention_norm.weight, self.attention_norm.bias, self.query_key_value.weight),
            *(self.forward_norm.weight, self.forward_norm.bias),
            *(self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias),
        )

    def kept(self, position_BS: Int[np.ndarray, "B S"], dropout: Dropout | None, *, like: Tensor) -> Kept | None:
        """What dropout leaves of both sub-layers at these positions of the batch."""
        if dropout is None:
            return None
        return Kept(*(dropout.mask(position_BS, like=like, site=self.shape.site + part) for part in (0, 1)))

    def _attend(
        self, normed_BTD: Float[Tensor, "B T D"], asking_BS: Int[Tensor, "B S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Queries of the slots that ask, keys and values of all."""
        query_BHSK, key_BHTK, value_BHTK = map(self._by_head, self._project(normed_BTD, asking_BS))
        visible_B1ST = None
        if asking_BS is not None:
            slot_T = torch.arange(normed_BTD.shape[1], device=normed_BTD.device)
            visible_B1ST = (slot_T <= asking_BS[:, :, None])[:, None]
        attended_BHSK = functional.scaled_dot_product_attention(
            query_BHSK, key_BHTK, value_BHTK, attn_mask=visible_B1ST, is_causal=asking_BS is None
        )
        return attended_BHSK.transpose(1, 2).flatten(2)

    def _project(
        self, normed_BTD: Float[Tensor, "B T D"], asking_BS: Int[Tensor, "B S"] | None
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """Queries, keys and values: eq. 3."""
        units = normed_BTD.shape[-1]
        if asking_BS is None:
            query_BTD, key_BTD, value_BTD = torch.split(self.query_key_value(normed_BTD), units, dim=-1)
            return query_BTD, key_BTD, value_BTD
        query_weight, key_value_weight = torch.split(self.query_key_value.weight, [units, 2 * units])
        key_value_BTE = functional.linear(normed_BTD, key_value_weight)
        key_BTD, value_BTD = torch.split(key_value_BTE, units, dim=-1)
        return functional.linear(at(normed_BTD, asking_BS), query_weight), key_BTD, value_BTD

    def _by_head(self, hidden_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T K"]:
        heads, units = self.shape.heads, hidden_BTD.shape[2]
        return hidden_BTD.view(*hidden_BTD.shape[:2], heads, units // heads).transpose(1, 2)


class SASRec(nn.Module):
    """The network and its item table, which is shared between input and prediction.

    `item_RD` holds `capacity` rows, all zero until `reset_rows` gives them a beginning: what a row starts from does not
    depend on when the table grew.
    """

    def __init__(self, settings: ModelSettings, *, capacity: int, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self.has_short_products = False
        """Whether torch makes products of bfloat16 (autocast), as pays on a GPU; sums and norms stay of float32. The
        native kernels take no notice."""
        self.has_fixed_shapes = False
        """Whether torch computes in few shapes, on a GPU by compiled blocks (model/fixed_shapes.py). The native kernels
        take no notice."""
        self.item_RD = nn.Parameter(torch.zeros(capacity, settings.units))
        self.position_TD = nn.Parameter(torch.empty(settings.max_length, settings.units))
        self.blocks = nn.ModuleList(
            Block(settings, site=EMBEDDING_SITE + 1 + 2 * number) for number in range(settings.blocks)
        )
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
        """Hidden states, to be multiplied with the item table: of every slot, or only of the `last` S.

        Sequences may be padded on either side or between; padded slots are zero. Dropout only with `rng`.

        Raises:
            ValueError: `last` is not one of 1 to T, or a sequence is longer than the model's positions.
        """
        slots = rows_BT.shape[1] if last is None else last
        if last is not None and not 1 <= last <= rows_BT.shape[1]:
            raise ValueError(f"the last {last} of {rows_BT.shape[1]} slots; ask for 1 to {rows_BT.shape[1]} of them")
        wanted_BT = torch.zeros_like(rows_BT, dtype=torch.bool)
        wanted_BT[:, rows_BT.shape[1] - slots :] = True
        return self.states_at(rows_BT, wanted_BT, rng=rng).view(len(rows_BT), slots, self.settings.units)

    def states_at(
        self, rows_BT: Int[Tensor, "B T"], wanted_BT: Bool[Tensor, "B T"], *, rng: np.random.Generator | None = None
    ) -> Float[Tensor, "P D"]:
        """Hidden states at the wanted slots, row by row; zero at padded ones.

        Of each sequence the last block computes the first wanted position and those after it.

        Raises:
            ValueError: a sequence is longer than the model's positions.
        """
        is_item_BT = rows_BT != PADDING
        comes_out_BT = is_item_BT & (wanted_BT.cumsum(dim=1) > 0)
        length_B, last_B = (slots_BT.sum(dim=1).cpu().numpy() for slots_BT in (is_item_BT, comes_out_BT))
        hidden_QD = self.encode(Packed(rows_BT[is_item_BT], length_B, last_B), rng=rng)
        if torch.equal(wanted_BT, comes_out_BT):
            return hidden_QD
        hidden_PD = hidden_QD.new_zeros(int(wanted_BT.sum()), self.settings.units)
        hidden_PD[is_item_BT[wanted_BT]] = hidden_QD[wanted_BT[comes_out_BT]]
        return hidden_PD

    def encode(self, sequences: Packed, *, rng: np.random.Generator | None = None) -> Float[Tensor, "Q D"]:
        """Hidden states of the last positions of each sequence, one sequence after another.

        Fewer positions cost less, for the last block works on them alone. Dropout only with `rng`.

        Raises:
            ValueError: a sequence is longer than the model's positions, or there are other rows than lengths say.
            TypeError: rows that are no whole numbers.
            IndexError: a row that the item table does not have.
        """
        sequences = sequences._replace(row_P=existing_rows(sequences.row_P, end=self.capacity))
        sequences.check()
        longest = int(sequences.length_B.max(initial=0))
        if longest > self.settings.max_length:
            raise ValueError(f"{longest} positions, the model knows {self.settings.max_length}; pass only the newest")
        dropout = Dropout.drawn(self.settings.dropout, rng)
        if not sequences.last_B.any():
            return self.item_RD.new_zeros(0, self.settings.units)
        if runs_natively(self.item_RD, heads=self.settings.heads):
            return self._encode_natively(sequences, dropout)
        return in_one_thread(lambda *_: self._encode_by_torch(sequences, dropout), *self.parameters())

    def _encode_by_torch(self, sequences: Packed, dropout: Dropout | None) -> Float[Tensor, "Q D"]:
        """Sequences of similar length together; the definition of what the native kernels do."""
        wanted_B = np.flatnonzero(sequences.last_B)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.has_short_products):
            if self.has_fixed_shapes:
                buckets = buckets_of(sequences.length_B[wanted_B], max_length=self.settings.max_length)
                parts = [
                    self._encode_bucket(sequences, bucket._replace(group_G=wanted_B[bucket.group_G]), dropout)
                    for bucket in buckets
                ]
            else:
                groups = length_groups(sequences.length_B[wanted_B])
                parts = [self._encode_group(sequences, wanted_B[group], dropout) for group in groups]
        hidden_QD, position_Q = (
            torch.cat([hidden_QD for hidden_QD, _ in parts]),
            torch.cat([position_Q for _, position_Q in parts]),
        )
        normed_QD: Tensor = self.final_norm(hidden_QD[position_Q.argsort()])
        return normed_QD

    def _encode_group(
        self, sequences: Packed, group: Int[np.ndarray, " G"], dropout: Dropout | None
    ) -> tuple[Float[Tensor, "Q D"], Int[Tensor, " Q"]]:
        """What comes out of some sequences, and where in the batch each of it stands."""
        every, last = (slots_of(chosen, group, self.device) for chosen in (sequences.whole(), sequences))
        hidden_BTD = self._embed(sequences, every, group, dropout)
        for block in self._blocks()[:-1]:
            hidden_BTD = block(hidden_BTD, None, block.kept(every.position_BT, dropout, like=hidden_BTD))
        for block in self._blocks()[-1:]:
            kept = block.kept(last.asking_positions(), dropout, like=hidden_BTD)
            hidden_BTD = block(hidden_BTD, last.asking(), kept)
        hidden_BSD = hidden_BTD if self.blocks else at(hidden_BTD, last.asking_BS)
        return hidden_BSD[last.wanted_BS], last.wanted_positions()

    def _embed(
        self, sequences: Packed, every: Slots, group: Int[np.ndarray, " G"], dropout: Dropout | None
    ) -> Float[Tensor, "G T D"]:
        slot_T = np.arange(every.position_BT.shape[1])
        length_G1 = sequences.length_B[group, None]
        place_GT = np.where(slot_T < length_G1, self.settings.max_length - length_G1 + slot_T, 0)
        row_GT = sequences.row_P[torch.from_numpy(every.position_BT).to(sequences.row_P.device)].to(self.device)
        item_GTD = functional.embedding(row_GT, self.item_RD, padding_idx=PADDING, sparse=True)
        place_GTD = functional.embedding(torch.from_numpy(place_GT).to(self.device), self.position_TD)
        summed_GTD = torch.add(place_GTD, item_GTD, alpha=self._item_scale)
        if dropout is None:
            return summed_GTD
        return summed_GTD * dropout.mask(every.position_BT, like=summed_GTD, site=EMBEDDING_SITE)

    def encode_last(self, rows_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The hidden state at the newest item, for prediction; zero where there is none.

        Raises:
            ValueError: a sequence is longer than the model's positions.
        """
        return self.encoder().encode_last(rows_BT)

    def encoder(self) -> Encoder:
        """Predicts with the weights as they are now, as often as you like; they must not change meanwhile."""
        return Encoder(self, Prepared(self._native_weights()) if self._finds_newest_natively else None)

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

    def _encode_natively(self, sequences: Packed, dropout: Dropout | None) -> Float[Tensor, "Q D"]:
        hidden_PD = native_embedding(self.item_RD, self.position_TD, sequences, scale=self._item_scale, dropout=dropout)
        for block in self._blocks()[:-1]:
            hidden_PD = block.natively(hidden_PD, sequences.whole(), dropout)
        for block in self._blocks()[-1:]:
            hidden_PD = block.natively(hidden_PD, sequences, dropout)
        hidden_QD = hidden_PD if self.blocks else hidden_PD[sequences.outputs()]
        return native_norm(hidden_QD, self.final_norm) if isinstance(self.final_norm, nn.LayerNorm) else hidden_QD

    @property
    def _finds_newest_natively(self) -> bool:
        return bool(self.blocks) and runs_natively(self.item_RD, heads=self.settings.heads)

    def _native_weights(self) -> Weights:
        norm = self.final_norm
        return Weights(
            item_RD=self.item_RD,
            position_TD=self.position_TD,
            blocks=[block.weights for block in self._blocks()],
            final_norm=(norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else None,
            heads=self.settings.heads,
            is_pre_norm=self.settings.norm == "pre",
            item_scale=self._item_scale,
        )

    def _encode_bucket(
        self, sequences: Packed, bucket: Bucket, dropout: Dropout | None
    ) -> tuple[Float[Tensor, "Q D"], Int[Tensor, " Q"]]:
        """The same in a fixed shape: every slot goes through all blocks, and what is wanted is taken afterwards."""
        filled_B = bucket.filled()
        every = slots_of(sequences.whole(), filled_B, self.device, width=bucket.slots)
        hidden_BTD = self._embed(sequences, every, filled_B, dropout)
        blocks = self._blocks()
        kept = [block.kept(every.position_BT, dropout, like=hidden_BTD) for block in blocks]
        go = compiled() if self.device.type == "cuda" else through
        last = slots_of(sequences, bucket.group_G, self.device)
        hidden_GSD = at(go(blocks, hidden_BTD, kept)[: len(bucket.group_G)], last.asking_BS)
        return hidden_GSD[last.wanted_BS], last.wanted_positions()

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def _item_scale(self) -> float:
        """As in "Attention is all you need", so that items and positions speak equally loud."""
        return float(self.settings.units**0.5)

    @torch.no_grad()
    def _draw_dense(self, generator: torch.Generator) -> None:
        self.position_TD.normal_(0.0, INITIAL_SCALE, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


class Encoder:
    """A network that predicts: what does not depend on the user is done once."""

    def __init__(self, network: SASRec, prepared: Prepared | None) -> None:
        self._network = network
        self._prepared = prepared

    @torch.inference_mode()
    def encode_last(self, rows_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """As `SASRec.encode_last`."""
        if self._prepared is not None and rows_BT.shape[1] <= self._network.settings.max_length:
            is_item_BT = rows_BT != PADDING
            row_P = existing_rows(rows_BT[is_item_BT], end=self._network.capacity)
            return self._prepared.newest(row_P=row_P, length_B=is_item_BT.sum(dim=1))
        is_known_B = (rows_BT != PADDING).any(dim=1)
        hidden_BD = self._network.item_RD.new_zeros(len(rows_BT), self._network.settings.units)
        hidden_BD[is_known_B] = self._network.encode(packed(rows_BT[is_known_B]).newest())
        return hidden_BD


def slots_of(sequences: Packed, group: Int[np.ndarray, " G"], device: torch.device, *, width: int = 0) -> Slots:
    """The sequences of a group side by side, in so many slots at least."""
    length_G1, last_G1 = sequences.length_B[group, None], sequences.last_B[group, None]
    start_G1 = (np.cumsum(sequences.length_B) - sequences.length_B)[group, None]
    slot_T, number_S = np.arange(length_G1.max(initial=width)), np.arange(last_G1.max(initial=0))
    asking_GS = length_G1 - last_G1 + number_S
    wanted_GS = number_S < last_G1
    return Slots(
        position_BT=np.where(slot_T < length_G1, start_G1 + slot_T, start_G1),
        asking_BS=torch.from_numpy(np.where(wanted_GS, asking_GS, 0)).to(device),
        wanted_BS=torch.from_numpy(wanted_GS).to(device),
        is_all=bool((length_G1 == last_G1).all()),
    )


def at(hidden_BTD: Float[Tensor, "B T D"], asking_BS: Int[Tensor, "B S"] | None) -> Float[Tensor, "B S D"]:
    """The slots that ask, of every sequence; None: all of them."""
    if asking_BS is None:
        return hidden_BTD
    return hidden_BTD.gather(1, asking_BS[:, :, None].expand(-1, -1, hidden_BTD.shape[2]))
