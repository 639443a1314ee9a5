"""An approximate search for catalogues that are too large to be scored as a whole.

Rows of the item table stand in lists of their like, each around a centre (k-means). A user's search looks through the
lists whose centres score highest, and reads their rows where the table itself has them. So scores are exact, and what
is not live or is excluded is not found, whatever the index still knows of it: an index that is behind the table costs
recall, never more. Nobody gets fewer items than there are: who would is searched for in the whole table.

Shapes: B users, E rows excluded, D units, R rows of the item table, S of them that centres are made of, L lists, P
lists looked through, F borders of lists, N rows in lists, X rows that changed, W that got another item, K best items.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.native.best import collects_natively
from model.native.probe import Lists, probed_natively
from model.ranking import CHUNK_SCORES, TopK, checked, top_k

NOWHERE = np.iinfo(np.uint16).max
"""The list of rows that stand in none."""
ROWS_PER_CENTRE, ROUNDS = 40, 6
"""Of k-means: more of either was not seen to find more."""
FILED_AT_ONCE = 8_192
"""Rows that are looked at anew between two versions of a model, besides those that got another item."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """Which list every row stands in. Never changed: `followed` gives the next one."""

    centre_LD: Float[Tensor, "L D"]
    probes: int
    """Lists that a search looks through: P."""
    list_R: np.ndarray
    """uint16."""
    border_F: Int[Tensor, " F"]
    """List l holds `row_N[border_F[l] : border_F[l + 1]]`."""
    row_N: Tensor
    """int32."""
    stale_R: Bool[np.ndarray, " R"]
    """Rows that changed since they were filed."""
    cursor: int = 0
    """Where among the stale rows filing goes on, so that each has its turn."""
    filed: int = 0
    """Rows looked at anew since the centres were made."""

    def search(
        self,
        hidden_BD: Float[Tensor, "B D"],
        item_RD: Float[Tensor, "R D"],
        *,
        k: int,
        excluded_BE: Int[Tensor, "B E"],
        live_R: Bool[Tensor, " R"],
    ) -> TopK:
        """As `top_k`, of the rows in the lists whose centres score highest."""
        assert len(self.list_R) <= len(item_RD), "an index is never ahead of its table"
        excluded_BE = checked(hidden_BD, item_RD, excluded_BE=excluded_BE, live_R=live_R)
        probed_BP = (hidden_BD @ self.centre_LD.T).topk(self.probes, dim=1, sorted=False).indices
        search = self._probe_natively if collects_natively(item_RD) else self._probe
        best = search(hidden_BD, item_RD, probed_BP, k=k, excluded_BE=excluded_BE, live_R=live_R)
        short_B = (best.row_BK[:, -1] == PADDING).nonzero()[:, 0]
        if len(short_B):
            whole = top_k(hidden_BD[short_B], item_RD, k=k, excluded_BE=excluded_BE[short_B], live_R=live_R)
            best.score_BK[short_B], best.row_BK[short_B] = whole
        return best

    def followed(
        self, item_RD: Float[Tensor, "R D"], *, changed_X: Int[np.ndarray, " X"], placed_W: Int[np.ndarray, " W"]
    ) -> Index:
        """After `changed_X` got other weights and `placed_W` another item: these are filed at once, others by turns.

        What it costs is bounded, however many rows changed. Once as many rows as there are were looked at anew, centres
        move to the middle of their lists: k-means goes on with the model.
        """
        more = len(item_RD) - len(self.list_R)
        list_R = np.pad(self.list_R, (0, more), constant_values=NOWHERE)
        stale_R = np.pad(self.stale_R, (0, more))
        stale_R[changed_X] = True
        stale_R[placed_W] = False
        stale_X = np.flatnonzero(stale_R)
        turn_X = np.roll(stale_X, -int(np.searchsorted(stale_X, self.cursor)))[:FILED_AT_ONCE]
        stale_R[turn_X] = False
        filed_X = np.union1d(placed_W, turn_X)
        list_X = nearest(item_RD[torch.from_numpy(filed_X)], self.centre_LD).numpy().astype(np.uint16)
        moved = not np.array_equal(list_R[filed_X], list_X)
        list_R[filed_X] = list_X
        following = dataclasses.replace(
            self,
            list_R=list_R,
            stale_R=stale_R,
            cursor=int(turn_X[-1]) + 1 if len(turn_X) else self.cursor,
            filed=self.filed + len(filed_X),
        )
        following = _sorted(following) if moved else following
        return _centred(following, item_RD) if following.filed >= len(item_RD) else following

    def _probe_natively(
        self, hidden_BD: Tensor, item_RD: Tensor, probed_BP: Tensor, *, k: int, excluded_BE: Tensor, live_R: Tensor
    ) -> TopK:
        lists = Lists(self.border_F, self.row_N, probed_BP)
        return TopK(*probed_natively(hidden_BD, item_RD, lists, k=k, excluded_BE=excluded_BE, live_R=live_R))

    def _probe(
        self, hidden_BD: Tensor, item_RD: Tensor, probed_BP: Tensor, *, k: int, excluded_BE: Tensor, live_R: Tensor
    ) -> TopK:
        score_BK = hidden_BD.new_full((len(hidden_BD), k), -torch.inf)
        row_BK = excluded_BE.new_full((len(hidden_BD), k), PADDING)
        for user, (hidden_D, probed_P, excluded_E) in enumerate(zip(hidden_BD, probed_BP, excluded_BE, strict=True)):
            row_C = torch.cat(
                [self.row_N[self.border_F[at] : self.border_F[at + 1]] for at in probed_P.tolist()]
            ).long()
            row_C = row_C[live_R[row_C] & ~torch.isin(row_C, excluded_E)]
            best = (item_RD[row_C] @ hidden_D).topk(min(k, len(row_C)))
            score_BK[user, : len(best.values)], row_BK[user, : len(best.values)] = best.values, row_C[best.indices]
        return TopK(score_BK, row_BK)


def index_of(item_RD: Float[Tensor, "R D"], *, lists: int, probes: int, rng: np.random.Generator) -> Index:
    """All rows but PADDING, filed; some seconds for a million.

    Raises:
        ValueError: more lists than rows, or than there can be; more probes than lists.
    """
    rows = len(item_RD)
    if not 0 < probes <= lists < min(rows, NOWHERE):
        raise ValueError(f"{rows} rows cannot be divided among {lists} lists of which {probes} are looked through")
    sample_S = rng.choice(np.arange(1, rows), size=min(rows - 1, ROWS_PER_CENTRE * lists), replace=False)
    centre_LD = _centres(item_RD[torch.from_numpy(sample_S)], lists=lists, rng=rng)
    list_R = nearest(item_RD, centre_LD).numpy().astype(np.uint16)
    list_R[PADDING] = NOWHERE
    nothing = torch.empty(0, dtype=torch.int64)
    return _sorted(
        Index(
            centre_LD=centre_LD,
            probes=probes,
            list_R=list_R,
            border_F=nothing,
            row_N=nothing,
            stale_R=np.zeros(rows, dtype=np.bool_),
        )
    )


def nearest(item_XD: Float[Tensor, "X D"], centre_LD: Float[Tensor, "L D"]) -> Int[Tensor, " X"]:
    """The nearest centre of each row, by the square of the distance."""
    half_L = centre_LD.square().sum(dim=1) / 2
    height = max(1, CHUNK_SCORES // len(centre_LD))
    parts = [torch.addmm(-half_L, part_CD, centre_LD.T).argmax(dim=1) for part_CD in torch.split(item_XD, height)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _centres(item_SD: Float[Tensor, "S D"], *, lists: int, rng: np.random.Generator) -> Float[Tensor, "L D"]:
    """Lloyd's k-means from random rows; a centre that nobody is near begins anew at a random row."""
    centre_LD = item_SD[torch.from_numpy(rng.choice(len(item_SD), size=lists, replace=False))]
    for _ in range(ROUNDS):
        anew_LD = item_SD[torch.from_numpy(rng.integers(len(item_SD), size=lists))]
        centre_LD = _middles(item_SD, nearest(item_SD, centre_LD), otherwise_LD=anew_LD)
    return centre_LD


def _middles(
    item_SD: Float[Tensor, "S D"], list_S: Int[Tensor, " S"], *, otherwise_LD: Float[Tensor, "L D"]
) -> Float[Tensor, "L D"]:
    """The mean of each list's rows."""
    count_L1 = torch.bincount(list_S, minlength=len(otherwise_LD))[:, None]
    sum_LD = torch.zeros_like(otherwise_LD).index_add_(0, list_S, item_SD)
    return torch.where(count_L1 > 0, sum_LD / count_L1.clamp(min=1), otherwise_LD)


def _centred(index: Index, item_RD: Float[Tensor, "R D"]) -> Index:
    filed_N = index.row_N.long()
    list_N = torch.from_numpy(index.list_R.astype(np.int64))[filed_N]
    centre_LD = _middles(item_RD[filed_N], list_N, otherwise_LD=index.centre_LD)
    return dataclasses.replace(index, centre_LD=centre_LD, filed=0)


def _sorted(index: Index) -> Index:
    """The rows list after list, as `list_R` has them."""
    order_R = np.argsort(index.list_R, kind="stable")
    border_F = np.searchsorted(index.list_R[order_R], np.arange(len(index.centre_LD) + 1))
    row_N = order_R[: border_F[-1]].astype(np.int32)
    return dataclasses.replace(index, border_F=torch.from_numpy(border_F), row_N=torch.from_numpy(row_N))
