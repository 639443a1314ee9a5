"""The one path by which examples change a model: live, catching up and in a full retrain.

A learner is everything that the next step depends on. What it is after some micro-batches is a function of its
settings, those micro-batches and its beginning, on CPU to the byte (I9). Shapes: N clicks, T positions.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from itertools import chain as concatenated
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from model.catalogue import PADDING, Catalogue
from model.negatives import Sampler, by_popularity, uniform
from model.optimiser import RowAdam
from model.ranking import foreseen
from model.sasrec import SASRec
from model.settings import ModelSettings
from stream.examples import ClickExample, Example, ExampleId, SlateExample
from trainer.baselines import Events, Popular
from trainer.batch import Chain, Stretch, at_request, coalesce, collate, in_sequence, runs, weighted
from trainer.crew import ALONE, Crew
from trainer.exposure import Exposure
from trainer.flood import Flood, Let, Reason
from trainer.guard import Guard
from trainer.newcomers import neighbours_of, warm_start
from trainer.prequential import CUT, MISS, Asked, Guess, Prequential
from trainer.probation import Probation
from trainer.replay import Replay
from trainer.restraints import restraints_of
from trainer.settings import TrainerSettings
from trainer.slates import collate_slates, lacks_in
from trainer.slots import Slots
from trainer.step import Fault, Micro, Step, Stepped
from trainer.waiting import Waiting
from trainer.weights import Lack, Weigher, Weights

REPLAYED_ITEMS_PER_POSITION = 2
"""Items kept per replayed user, in multiples of what the network can read."""


Mode = Literal["normal", "wary"]
"""`wary`: a loss far above the usual is refused at once. So are examples met again that led to a roll-back."""


class Refused(NamedTuple):
    """An example that changed no weight, and why."""

    example: Example
    fault: Fault


class Learnt(NamedTuple):
    """What one micro-batch did."""

    stepped: Stepped
    weights: Weights
    slate_lacks: Counter[Lack]
    """Items of closed slates without a propensity, by reason."""
    refused: list[Refused]
    z_score: float
    """How far the loss stood above the usual (trainer/guard.py)."""
    flooded: Counter[Reason]
    """Examples beyond what one user or item may teach (trainer/flood.py)."""
    trained: int
    """Examples that were learnt."""


class Met(NamedTuple):
    """Clicks, and how they follow one another."""

    clicks: Sequence[ClickExample]
    chains: Sequence[Chain]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Met:
        """The clicks among them."""
        clicks = [example for example in examples if isinstance(example, ClickExample)]
        return cls(clicks, runs(clicks))


class Lesson(NamedTuple):
    """What one step shall learn, apart from what is replayed."""

    met: Met
    weight_N: Float[np.ndarray, " N"]
    slates: Sequence[SlateExample]

    @property
    def size(self) -> int:
        """Examples."""
        return len(self.met.clicks) + len(self.slates)

    def halves(self) -> tuple[Lesson, Lesson]:
        """Half of the clicks and half of the slates each; of two single ones, one each."""
        clicks, slates = (len(self.met.clicks) + 1) // 2, len(self.slates) // 2
        return (
            Lesson(Met.of(self.met.clicks[:clicks]), self.weight_N[:clicks], self.slates[:slates]),
            Lesson(Met.of(self.met.clicks[clicks:]), self.weight_N[clicks:], self.slates[slates:]),
        )


class Learner:
    """A network with its catalogue, its optimiser, and all that it remembers of the stream."""

    def __init__(
        self, model: ModelSettings, trainer: TrainerSettings, *, device: str = "cpu", crew: Crew = ALONE
    ) -> None:
        """With a `crew` every process calls the same methods in the same order, with the same examples.

        Raises:
            ValueError: a setting that works with one process only.
        """
        self.settings = trainer
        self.crew = crew
        self.rng = np.random.default_rng(trainer.seed)
        self.replay = Replay(
            trainer.replay_users, REPLAYED_ITEMS_PER_POSITION * model.max_length, choice=trainer.replay_choice
        )
        self.weigher = Weigher(trainer)
        self.exposure = Exposure(trainer.weight_window)
        self.slots = Slots(trainer.weight_window)
        self.restraints = restraints_of(trainer, model)
        if self.restraints and crew.size > 1:
            raise ValueError(
                "trainer.distillation and trainer.consolidation work with one process only; set both to 0, or start "
                "the trainer without torchrun"
            )
        self.guard = Guard()
        self.flood = Flood()
        self.probation: Probation | None = None
        """Where it was promoted lately."""
        self.waiting = Waiting()
        self.examples_trained = 0
        self.trained_through_ms: int | None = None
        self.trained_through_arrival_ms: int | None = None
        catalogue = Catalogue(max_items=trainer.max_items, half_life_clicks=trainer.popular_half_life)
        network = SASRec(model, capacity=catalogue.capacity, generator=torch.Generator().manual_seed(trainer.seed))
        self.take_over(catalogue, network.to(torch.device(device)))

    def take_over(self, catalogue: Catalogue, network: SASRec) -> None:
        """Goes on with a network, a fresh optimiser and baselines that know nothing."""
        catalogue.max_items, catalogue.half_life_clicks = self.settings.max_items, self.settings.popular_half_life
        self.catalogue = catalogue
        self.network = network
        on_cuda = network.device.type == "cuda"
        network.has_short_products = on_cuda and self.settings.network_products == "bfloat16"
        network.has_fixed_shapes = on_cuda and self.settings.network_shapes == "fixed"
        self.optimiser = RowAdam(
            network,
            learning_rate=self.settings.learning_rate,
            max_norm=self.settings.gradient_norm,
            weight_decay=self.settings.weight_decay,
        )
        self.prequential = Prequential(self.settings, capacity=catalogue.capacity)
        self._step = Step(network, self.optimiser, self.settings, restraints=self.restraints, crew=self.crew)

    def learn(self, examples: Sequence[Example], *, mode: Mode = "normal") -> Learnt:
        """One micro-batch.

        0. What a user or an item has too many of in the window is left out altogether.
        1. Every click is predicted, by the network and the baselines, before anything learns from it.
        2. New items get rows; the baselines and the popularity counts learn.
        3. Clicks are weighed and stand beside replayed sequences; slates become pairs.
        4. One optimiser step; where it is refused, one for each part of the micro-batch that is not.
        5. The sequences are remembered for replay, as history also what was left out or refused.
        """
        # 0.
        every, (examples, flooded) = examples, self._let(examples)
        met = Met.of(examples)
        slates = [example for example in examples if isinstance(example, SlateExample)]
        # 1.
        self.foresee(met.clicks)
        # 2.
        self._admit(met)
        # 3.
        for slate in slates:
            self.exposure.observe(slate)
            self.slots.observe(slate)
        if self.settings.positions_from == "explored":
            self.weigher.examination_factors = self.slots.examination_factors(bias=self.settings.position_bias)
        weights = self.weigher.weigh(met.clicks, exposure=self.exposure)
        replayed = self.replayed(len({click.user_id for click in met.clicks}))
        # 4.
        lesson = Lesson(met, weights.weight_N, slates)
        stepped = self.step(self._micro(lesson, replayed), ceiling=self._ceiling(lesson, mode))
        refused = [] if stepped.fault is None else self._learn_parts(lesson, mode)
        z_score = self._watch(stepped, lesson)
        self.guard.count(wary=mode == "wary")
        # 5.
        taught_N = in_sequence(met.clicks, weights.weight_N)
        weight_of = {click.id: weight for click, weight in zip(met.clicks, taught_N.tolist(), strict=True)}
        self._remember(Met.of(every) if flooded else met, weight_of, but=[one.example for one in refused])
        trained = len(examples) - len(refused)
        self._count(met.clicks, trained=trained)
        return Learnt(stepped, weights, lacks_in(slates), refused, z_score, flooded, trained)

    def _let(self, examples: Sequence[Example]) -> Let:
        window = self.settings.flood_window
        return self.flood.let(
            examples,
            window=window,
            per_user=max(1, round(self.settings.user_flood_share * window)),
            per_item=max(1, round(self.settings.item_flood_share * window)),
        )

    def _ceiling(self, lesson: Lesson, mode: Mode) -> float:
        if mode == "normal":
            return math.inf
        return self.guard.ceiling(self.settings.spike_z_score, examples=lesson.size)

    def _watch(self, stepped: Stepped, lesson: Lesson) -> float:
        """The z-score of the step; a spike is not remembered as usual, nor is a step that learnt nothing."""
        if stepped.fault is not None or stepped.loss == 0.0:
            return 0.0
        z_score = self.guard.z_score(stepped.loss, examples=lesson.size)
        if z_score <= self.settings.spike_z_score:
            self.guard.remember(stepped.loss, examples=lesson.size)
        return z_score

    def _micro(self, lesson: Lesson, replayed: Sequence[Stretch]) -> Micro:
        max_length = self.network.settings.max_length
        pieces = coalesce(lesson.met.chains, max_length=max_length, min_context=self.settings.min_context)
        weight_N = in_sequence(lesson.met.clicks, lesson.weight_N)
        stretches = [weighted(piece, weight_N) for piece in pieces]
        stretches += at_request(lesson.met.clicks, lesson.weight_N, max_length=max_length)
        slates = collate_slates(lesson.slates, self.catalogue.rows_of, weigher=self.weigher, max_length=max_length)
        return self.micro(stretches, replayed)._replace(slates=slates)

    def micro(self, stretches: Sequence[Stretch], replayed: Sequence[Stretch]) -> Micro:
        """Sequences as tensors; the replayed ones apart only where a restraint looks at them: together is faster."""
        if not self.restraints:
            return Micro(collate([*stretches, *replayed], self.catalogue.rows_of), None)
        return Micro(
            collate(stretches, self.catalogue.rows_of), None, replayed=collate(replayed, self.catalogue.rows_of)
        )

    def _learn_parts(self, lesson: Lesson, mode: Mode) -> list[Refused]:
        """Learns the halves of what was refused, and theirs, and gives back the single examples that are at fault."""
        refused: list[Refused] = []
        for half in lesson.halves() if lesson.size > 1 else (lesson,):
            fault = self.step(self._micro(half, ()), ceiling=self._ceiling(half, mode)).fault if half.size else None
            if fault is not None and half.size == 1:
                refused += [Refused(click, fault) for click in half.met.clicks]
                refused += [Refused(slate, fault) for slate in half.slates]
            elif fault is not None:
                refused += self._learn_parts(half, mode)
        return refused

    def _remember(self, met: Met, weight_of: Mapping[ExampleId, float], *, but: Sequence[Example]) -> None:
        """What has no weight or was refused must not be taught by replay.

        It stands there without weight, as it stands in the context of the user's next click: left out, it would come
        back from that context as somebody's click like any other.
        """
        refused = {example.id for example in but}
        weight_N = np.array([0.0 if one.id in refused else weight_of.get(one.id, 0.0) for one in met.clicks])
        user_ids = [met.clicks[chain.examples[0]].user_id for chain in met.chains]
        self.remember(user_ids, [weighted(chain, weight_N) for chain in met.chains])

    def remember(self, user_ids: Sequence[str], stretches: Sequence[Stretch]) -> None:
        """Puts sequences where replay finds them."""
        states = self._states(stretches) if self.replay.choice == "herding" else [None] * len(stretches)
        for user_id, stretch, state_D in zip(user_ids, stretches, states, strict=True):
            self.replay.remember(user_id, stretch, rng=self.rng, state_D=state_D)

    def _states(self, stretches: Sequence[Stretch]) -> Sequence[Float[np.ndarray, " D"]]:
        """What the network makes of each sequence before its last item."""
        row_BT = np.full((len(stretches), self.network.settings.max_length), PADDING, dtype=np.int64)
        for row_T, stretch in zip(row_BT, stretches, strict=True):
            rows = self.catalogue.rows_of(stretch.items[:-1][-len(row_T) :])
            row_T[len(row_T) - len(rows) :] = rows
        hidden_BD = self.network.encode_last(torch.from_numpy(row_BT).to(self.network.device))
        return list(self.crew.of_first(hidden_BD.cpu().numpy()))

    def replayed(self, users: int) -> list[Stretch]:
        """As many users as `replay_share` asks for, as far as `replay_positions` goes, but always one of them."""
        stretches = self.reminded(round(self.settings.replay_share * users))
        ends = accumulate(len(stretch.weights) for stretch in stretches)
        within = sum(end <= self.settings.replay_positions for end in ends)
        return stretches[: max(1, within)]

    def reminded(self, users: int) -> list[Stretch]:
        """Of so many replayed users, what the network can read."""
        return [self.readable(stretch) for stretch in self.replay.draw(users, rng=self.rng)]

    def accept(self) -> None:
        """From now on the restraints hold to the weights as they are."""
        for restraint in self.restraints:
            restraint.accept(self.network, self.optimiser, rows=self.catalogue.size)

    def step(self, micro: Micro, *, ceiling: float = math.inf) -> Stepped:
        """One optimiser step on what is ready; rows of all its items exist."""
        if len(self.catalogue) == 0:
            return Stepped(0.0, 0.0)
        return self._step(micro, sampler=self._sampler(), size=self.catalogue.size, rng=self.rng, ceiling=ceiling)

    def _sampler(self) -> Sampler:
        row_N = self.catalogue.live_rows()
        # What comes from the batch comes as often as it is clicked.
        alpha = 1.0 if self.settings.negatives_from == "batch" else self.settings.negative_popularity
        if alpha == 0.0:
            return uniform(row_N)
        return by_popularity(row_N, self.catalogue.recent_click_counts()[row_N], alpha=alpha)

    def admit(self, item_ids: Iterable[str], *, sequences: Sequence[Sequence[str]] = ()) -> None:
        """Gives every item a row; new rows begin afresh in the network, the optimiser and the baselines.

        In the network they begin among their neighbours in `sequences`, unless settings say at random.
        """
        for item_id in item_ids:
            self.catalogue.admit(item_id)
        fresh = self.catalogue.take_fresh_rows()
        if self.catalogue.capacity > self.network.capacity:
            self.network.grow(self.catalogue.capacity)
            self.optimiser.grow()
            self.prequential.grow(self.catalogue.capacity)
        if len(fresh):
            self.network.reset_rows(fresh, self.rng)
            self.optimiser.reset_rows(fresh)
            self.prequential.forget(fresh)
            for restraint in self.restraints:
                restraint.forget(fresh)
            if self.settings.new_rows == "neighbours":
                new = map(self.catalogue.item_of, fresh.tolist())
                warm_start(self.network, self.catalogue, neighbours_of(new, sequences))

    def entitled(self, clicked: Iterable[str]) -> dict[str, None]:
        """Of items that were clicked, in this order, those without a row that now get one."""
        unknown = (item_id for item_id in clicked if self.catalogue.row_of(item_id) == PADDING)
        return self.waiting.ready(unknown, after=self.settings.admit_after, most=self.settings.waiting_items)

    def _admit(self, met: Met) -> None:
        clicks, sequences = met.clicks, [chain.items for chain in met.chains]
        seen = dict.fromkeys(concatenated.from_iterable(sequences))
        if self.settings.admit_after > 1:
            entitled = self.entitled(click.item_id for click in clicks)
            seen = {item: None for item in seen if item in entitled or self.catalogue.row_of(item) != PADDING}
        self.admit(seen, sequences=sequences)
        last_N = self.catalogue.rows_of(click.context[-1] if click.context else "" for click in clicks)
        events = Events(last_N[:, None], self.catalogue.rows_of(click.item_id for click in clicks))
        self.catalogue.count_clicks(events.target_N)
        self.prequential.learn(events, at_ms_N=np.array([click.timestamp_ms for click in clicks], dtype=np.int64))

    def foresee(self, clicks: Sequence[ClickExample]) -> None:
        """Predicts, and keeps how well; learns nothing."""
        asked = self._some(clicks)
        if not asked:
            return
        events = Events(self._histories(asked), self.catalogue.rows_of(click.item_id for click in asked))
        judged = self.prequential.judge(
            Asked(
                events=events,
                served_N=np.array([click.served is not None for click in asked], dtype=np.bool_),
                user_N=np.array([zlib.crc32(click.user_id.encode()) for click in asked], dtype=np.int64),
                at_ms_N=np.array([click.timestamp_ms for click in asked], dtype=np.int64),
                weight=len(clicks) / len(asked),
            ),
            self._guess(events),
            popular=Popular(self.catalogue.recent_click_counts()),
        )
        if self.probation is not None:
            self.probation.observe(judged)

    def _some(self, clicks: Sequence[ClickExample]) -> Sequence[ClickExample]:
        """At most `predicted_clicks`, by dice of their own: what is measured changes nothing of what is learnt."""
        most = self.settings.predicted_clicks
        if len(clicks) <= most:
            return clicks
        dice = np.random.default_rng((abs(self.settings.seed), self.guard.batches))
        return [clicks[place] for place in np.sort(dice.choice(len(clicks), most, replace=False)).tolist()]

    def _histories(self, clicks: Sequence[ClickExample]) -> Int[np.ndarray, "N T"]:
        """Contexts as rows; what has no row yet is PADDING."""
        length = max(1, *(len(click.context) for click in clicks))
        history_NT = np.full((len(clicks), length), PADDING, dtype=np.int64)
        for index, click in enumerate(clicks):
            history_NT[index, length - len(click.context) :] = self.catalogue.rows_of(click.context)
        return history_NT

    def _guess(self, events: Events) -> Guess:
        """The network's rank of every target among what the user does not have; a click without history is a miss."""
        mine, count = self.crew.mine, len(events.target_N)
        own = self._own_guess(Events(events.history_NT[mine], events.target_N[mine]))
        return Guess(*(self.crew.together(found, count=count) for found in own))

    @torch.inference_mode()
    def _own_guess(self, events: Events) -> Guess:
        network, device = self.network, self.network.device
        history_NT = torch.from_numpy(events.history_NT).to(device)
        is_known_N = (events.history_NT != PADDING).any(axis=1)
        found = foreseen(
            network.encode_last(history_NT[:, -network.settings.max_length :]),
            network.item_RD[: self.catalogue.size],
            target_P=torch.from_numpy(events.target_N).to(device),
            excluded_PE=history_NT,
            live_R=torch.from_numpy(self.catalogue.live_mask()).to(device),
            k=CUT,
        )
        rank_N, best_NJ = found.rank_P.cpu().numpy(), found.row_PK.cpu().numpy()
        return Guess(np.where(is_known_N, rank_N, MISS), np.where(is_known_N[:, None], best_NJ, PADDING))

    def readable(self, stretch: Stretch) -> Stretch:
        """A random window of a replayed sequence that the network can read."""
        surplus = len(stretch.items) - 1 - self.network.settings.max_length
        if surplus <= 0:
            return stretch
        start = int(self.rng.integers(surplus + 1))
        window = slice(start, start + self.network.settings.max_length + 1)
        weights = (0.0,) * (len(stretch.items) - len(stretch.weights)) + stretch.weights
        return Stretch(stretch.items[window], weights[window])

    def _count(self, clicks: Sequence[ClickExample], *, trained: int) -> None:
        before, self.examples_trained = self.examples_trained, self.examples_trained + trained
        if before // self.settings.accept_examples < self.examples_trained // self.settings.accept_examples:
            self.accept()
        for click in clicks:
            self.trained_through_ms = max(click.timestamp_ms, self.trained_through_ms or 0)
            self.trained_through_arrival_ms = max(click.arrived_at_ms, self.trained_through_arrival_ms or 0)

    def random_state(self) -> bytes:
        """Of the generator, as JSON: its numbers are wider than MessagePack's."""
        return json.dumps(self.rng.bit_generator.state).encode()

    def restore_random_state(self, state: bytes) -> None:
        """Becomes what `random_state` gave."""
        self.rng.bit_generator.state = json.loads(state)
