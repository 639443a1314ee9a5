"""Several processes that learn one model together, torchrun's ranks; one process is a crew of its own.

Every process holds the whole learner. What each has read is exchanged, so that all take in the same micro-batch in the
same order: catalogue, weights of clicks, replay, windows and the random state are functions of it, and agree without
another word. Divided is what costs: reading the partitions, predicting, and the gradients. These are added up, of the
item table only the rows that anybody touched, and everybody takes the same step. So a checkpoint is that of one
process, and any number of processes goes on from it. Shapes: R rows of the item table, U rows touched, D units, N
things that all know.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, and left out of __all__
from torch.distributed.rendezvous import rendezvous

from model.sasrec import SASRec

TABLE = "item_RD"
PATIENCE = datetime.timedelta(minutes=2)
"""How long a process waits for the others before it gives up, and all are started again. One that was killed is
noticed at once.
"""


class Total(NamedTuple):
    """Of what every process has found on its portion."""

    loss: float
    teaches: bool
    """Whether anybody has a gradient."""


class Crew:
    """One process: nothing is divided, and nothing has to be said."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process decides, publishes and writes; the others follow it."""
        return self.rank == 0

    def tell(self, order: bytes) -> None:
        """From the one that leads to all others."""

    def hear(self) -> bytes:
        """What the one that leads has told."""
        raise AssertionError("one process has nobody to hear")

    def exchange(self, own: bytes) -> list[bytes]:
        """What each process has, by rank."""
        return [own]

    @property
    def mine(self) -> slice:
        """This process's share of things that all know: dealt out by turns."""
        return slice(self.rank, None, self.size)

    def together(self, own_N: np.ndarray, *, count: int) -> np.ndarray:
        """From what each found for `mine` of `count` things, what was found for all of them."""
        assert len(own_N) == count
        return own_N

    def of_first(self, own: np.ndarray) -> np.ndarray:
        """What the one that leads has computed, where a last bit may differ from machine to machine."""
        return own

    def own(self, rng: np.random.Generator, *, step: int) -> np.random.Generator:  # noqa: ARG002 - of several ranks
        """A generator for what each process draws for itself in a step; the common one is not moved on by it."""
        return rng

    def total(self, loss: Tensor) -> Total:
        """The loss of the whole micro-batch."""
        return Total(float(loss.detach()), loss.requires_grad)

    def add_up(self, network: SASRec) -> None:
        """The gradients of all take the place of each one's own."""

    def check_same(self, digest: bytes) -> None:
        """Refuses to go on where processes that should be the same are not.

        Raises:
            RuntimeError: they have drifted apart.
        """


ALONE = Crew()


class Ranks(Crew):
    """One of several processes; the methods are called by all of them, in the same order."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def tell(self, order: bytes) -> None:
        """One broadcast of its length, one of itself."""
        length = torch.tensor([len(order)])
        distributed.broadcast(length, src=0)
        distributed.broadcast(_bytes(order), src=0)

    def hear(self) -> bytes:
        """Waits for it."""
        length = torch.zeros(1, dtype=torch.int64)
        distributed.broadcast(length, src=0)
        order = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(order, src=0)
        return order.numpy().tobytes()

    def exchange(self, own: bytes) -> list[bytes]:
        """As long as the longest: the others are filled up."""
        lengths = [int(length) for length in self._gathered(torch.tensor([len(own)]))]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(own)] = _bytes(own)
        found = self._gathered(padded)
        return [one[:length].numpy().tobytes() for one, length in zip(found, lengths, strict=True)]

    def together(self, own_N: np.ndarray, *, count: int) -> np.ndarray:
        """Dealt out by turns, and put back by turns."""
        found = np.empty((count, *own_N.shape[1:]), dtype=own_N.dtype)
        for rank, part in enumerate(self.exchange(np.ascontiguousarray(own_N).tobytes())):
            found[rank :: self.size] = np.frombuffer(part, dtype=own_N.dtype).reshape(-1, *own_N.shape[1:])
        return found

    def of_first(self, own: np.ndarray) -> np.ndarray:
        """Costs one broadcast."""
        raw = np.ascontiguousarray(own).tobytes()
        if self.leads:
            self.tell(raw)
        else:
            raw = self.hear()
        return np.frombuffer(raw, dtype=own.dtype).reshape(own.shape).copy()

    def own(self, rng: np.random.Generator, *, step: int) -> np.random.Generator:
        """Seeded by the common state, the step and the rank."""
        return np.random.default_rng((rng.bit_generator.state["state"]["state"], step, self.rank))

    def total(self, loss: Tensor) -> Total:
        """Added up in the order of ranks: the same number everywhere."""
        own = torch.tensor([float(loss.detach()), float(loss.requires_grad)], dtype=torch.float64)
        found = torch.stack(self._gathered(own)).numpy()
        return Total(float(found[:, 0].sum()), bool(found[:, 1].any()))

    @torch.no_grad()
    def add_up(self, network: SASRec) -> None:
        """Dense gradients in one piece; of the item table the rows touched, or all where somebody has all."""
        dense = [weight for name, weight in network.named_parameters() if name != TABLE]
        flat = torch.cat([_gradient_of(weight).flatten() for weight in dense])
        distributed.all_reduce(flat)
        for weight, part in zip(dense, torch.split(flat, [weight.numel() for weight in dense]), strict=True):
            weight.grad = part.view_as(weight).clone()
        network.item_RD.grad = self._table_gradient(network.item_RD)

    def _table_gradient(self, item_RD: Float[Tensor, "R D"]) -> Tensor:
        own = item_RD.grad
        rows = -1 if own is not None and not own.is_sparse else 0
        if own is not None and own.is_sparse:
            own = own.coalesce()
            rows = own.indices().shape[1]
        counts = [int(count) for count in self._gathered(torch.tensor([rows]))]
        if min(counts) < 0:
            whole = torch.zeros_like(item_RD) if own is None else own.to_dense() if own.is_sparse else own
            distributed.all_reduce(whole)
            return whole
        return self._touched(item_RD, own, counts)

    def _touched(self, item_RD: Float[Tensor, "R D"], own: Tensor | None, counts: Sequence[int]) -> Tensor:
        most = max(1, *counts)
        row_U = torch.zeros(most, dtype=torch.int64, device=item_RD.device)
        value_UD = torch.zeros(most, item_RD.shape[1], dtype=item_RD.dtype, device=item_RD.device)
        if own is not None:
            row_U[: own.indices().shape[1]] = own.indices()[0]
            value_UD[: own.indices().shape[1]] = own.values()
        pairs = list(zip(self._gathered(row_U), self._gathered(value_UD), counts, strict=True))
        rows = torch.cat([found[:count] for found, _, count in pairs])
        values = torch.cat([found[:count] for _, found, count in pairs])
        return torch.sparse_coo_tensor(rows[None], values, item_RD.shape, check_invariants=False).coalesce()

    def check_same(self, digest: bytes) -> None:
        """Compares all with all."""
        found = set(self.exchange(digest))
        if len(found) > 1:
            raise RuntimeError(
                f"{self.size} processes that learn one model have drifted apart; give them the same machines and "
                "versions of torch. Learning goes on from the last checkpoint"
            )

    def _gathered(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(found, own)
        return found


@contextlib.contextmanager
def crew_of(environment: Mapping[str, str] = os.environ) -> Iterator[Crew]:
    """The processes that torchrun has started, as its environment variables say; without them this one alone.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL.
    """
    if int(environment.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps one store over all restarts: whoever came back first would call the dead by their old addresses.
    own = PrefixStore(f"restart-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks()
    finally:
        distributed.destroy_process_group()


def rank_in(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number among those that torchrun has started; 0 without it."""
    return int(environment.get("RANK", "0")) if int(environment.get("WORLD_SIZE", "1")) > 1 else 0


def _gradient_of(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
