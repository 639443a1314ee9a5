"""Not forgetting and not standing still: a model that learns week by week, beside one that is made anew every week.

    .venv/bin/python -m benchmarks.continual FILE [--quick] [--only ARM,...] [--joint-every N] [--kept FOLDER] [--seen]

FILE is a parquet file of (period, session, item) in the order of arrival, as the DIGINETICA weeks of ADER (Mi, Lin,
Faltings, RecSys 2020), whose protocol this is: learn week t, be tested on week t + 1 (`benchmarks.weeks`), Recall@20
and MRR@20 averaged over the cycles. Network and memory as published: 2 blocks, 1 head, 150 units, length 50, dropout
0.3, at most 30,000 replayed sequences. The loss is the trainer's (softmax over sampled items), a step learns 64
sessions beside half as many replayed ones, half of them read from their end, and the rate falls along a cosine from
3e-3 over eight passes of a week (six where an arm says so): a warm restart, not early stopping. In the last two passes
every click stands at the end of a sequence of its own, as it does when it is asked for and as in all passes of the
paper's. All arms go on from one model of the first week, by the trainer's own step, replay, restraints and new rows;
`joint` is made anew in every cycle from all weeks so far, as the first model was.

The second half is the same events as a stream: nothing is learnt twice but by replay, click by click in the order of
arrival, in micro-batches, each predicted before it is learnt, by the path that the running trainer takes; tested after
every week like the others.

`--quick` does the first four cycles, some forty minutes of one core. What was seen is kept cycle by cycle (with a
checkpoint), so that an interrupted run goes on; CPU seconds are those of learning alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.weeks import Score, Session, Week, examined, questions_of, read_weeks
from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId
from trainer.batch import Stretch
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.passes import rate_at
from trainer.prequential import RANKERS
from trainer.publish import write
from trainer.settings import TrainerSettings
from trainer.state import resume

NETWORK = ModelSettings(max_length=50, units=150, blocks=2, heads=1, dropout=0.3)
TRAINER = {"negatives": 2_048, "replay_users": 30_000, "accept_examples": 10**9, "flood_window": 10**9}
SESSIONS = 64
"""Of a step: about 256 clicks."""
QUICK_CYCLES = 4
"""Of `--quick`. Passes, rates, batches and the arms themselves were chosen by what these showed: only the later ones
are tests that nothing was fitted to, and they are reported apart.
"""
REPLAY = 0.5
"""Replayed sessions beside each one that is learnt."""
REMEMBERED_AT_ONCE = 512
PUBLISHED = {"fine-tuning": (47.28, 16.01), "dropout": (49.07, 16.86), "ADER": (50.21, 17.32), "joint": (50.03, 17.31)}
START_MS = 1_464_000_000_000

FIRST_WEEK = "first week"

Way = Literal["passes", "anew", "stream"]


class Plan(NamedTuple):
    """How often a week is learnt, and how fast."""

    epochs: int
    peak_rate: float
    apart: int
    """Of the passes the last ones, in which each click is learnt from a sequence that ends with it (`apart`)."""
    backwards: float
    """Share of sessions that a pass reads from their end: what is looked at together is near in either order."""


FIRST, NEXT = Plan(8, 3e-3, apart=2, backwards=0.5), Plan(8, 3e-3, apart=2, backwards=0.5)
"""Of the first week (and of all weeks, where a model is made anew), and of every week after it: a warm restart."""
SHORT = NEXT._replace(epochs=6)
"""What distillation makes dearer, fewer passes make cheaper again."""


class Arm(NamedTuple):
    """One way to go on from week to week."""

    settings: dict[str, object]
    way: Way = "passes"
    replay_share: float = 0.0
    dropout: float = NETWORK.dropout
    plan: Plan = NEXT


AT_RANDOM: dict[str, object] = {"new_rows": "random"}
FEW: dict[str, object] = {"replay_users": 5_000}
"""Of 30,000 places none is given up in the first four cycles; so it takes fewer for a choice to show."""

ARMS = {
    "fine-tuning": Arm({}, dropout=0.0),
    "dropout": Arm({}),
    "replay": Arm({}, replay_share=REPLAY),
    "replay with rows at random": Arm(AT_RANDOM, replay_share=REPLAY),
    "replay per item": Arm({"replay_choice": "per_item"}, replay_share=REPLAY),
    "replay by herding": Arm({"replay_choice": "herding"}, replay_share=REPLAY),
    "replay with distillation": Arm({"distillation": 1.0}, replay_share=REPLAY),
    "replay with distillation in six passes": Arm({"distillation": 1.0}, replay_share=REPLAY, plan=SHORT),
    "replay with consolidation": Arm({"consolidation": 1.0}, replay_share=REPLAY),
    "consolidation": Arm({"consolidation": 1.0}),
    "replay of few": Arm(FEW, replay_share=REPLAY),
    "replay of few per item": Arm({**FEW, "replay_choice": "per_item"}, replay_share=REPLAY),
    "replay of few by herding": Arm({**FEW, "replay_choice": "herding"}, replay_share=REPLAY),
    "joint": Arm(AT_RANDOM, way="anew"),
    "stream": Arm({}, way="stream", replay_share=1.0),
    "stream with rows at random": Arm(AT_RANDOM, way="stream", replay_share=1.0),
}
"""New rows begin at their neighbours' mean, the trainer's default, where an arm does not say otherwise; in `joint`, as
in the first week, no neighbour has learnt anything.
"""


class Cycle(NamedTuple):
    """What one arm showed after a week."""

    arm: str
    week: int
    """The last week that was learnt; the next one was tested."""
    score: Score
    cpu_seconds: float
    """Of learning it, the test left out."""
    foreseen: Mapping[str, tuple[float, float]] = {}
    """The stream's HR@10 and NDCG@10, every click before it was learnt, since the beginning; by ranker."""


class Kept:
    """What was seen so far, one JSON line for each cycle, and each arm's last model; by settings, so that none mix."""

    def __init__(self, folder: Path, *, file: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = file.name
        self._path = folder / "cycles.jsonl"

    def cycles(self) -> list[Cycle]:
        """In the order in which they were seen."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        found = (json.loads(line) for line in lines)
        return [
            Cycle(one["arm"], one["week"], Score(*one["score"]), one["cpu_seconds"], one.get("foreseen", {}))
            for one in found
            if one["arm"] in {FIRST_WEEK, *ARMS} and one["of"] == self._of(one["arm"])
        ]

    def add(self, cycle: Cycle, learner: Learner | None) -> None:
        """The model first: a line stands for a model that is there. The one before it goes."""
        lineage, version = self.folder / self._lineage(cycle.arm), cycle.week + 1
        if learner is not None and not (lineage / f"{version:08d}").exists():
            write(learner, Cut(), root=self.folder, lineage=lineage.name, version=version)
        with self._path.open("a") as file:
            file.write(json.dumps({"of": self._of(cycle.arm), **cycle._asdict()}) + "\n")
        shutil.rmtree(lineage / f"{version - 1:08d}", ignore_errors=True)

    def learner(self, arm: str, week: int) -> Learner:
        """As it was after that week, with the settings of an arm; all but the stream share the first week's model."""
        is_shared = week == 0 and ARMS[arm].way != "stream"
        path = self.folder / self._lineage(FIRST_WEEK if is_shared else arm) / f"{week + 1:08d}"
        learner = resume(path, settings_of(ARMS[arm])).learner
        network = learner.network
        network.settings = network.settings.model_copy(update={"dropout": ARMS[arm].dropout})
        return learner

    def _lineage(self, arm: str) -> str:
        return f"{arm.replace(' ', '-')}-{self._of(arm)}"

    def _of(self, arm: str) -> str:
        """All that a cycle depends on, as a short name."""
        how: list[object] = [NETWORK, TRAINER, FIRST, SESSIONS, self._file]
        if arm != FIRST_WEEK and ARMS[arm].way != "anew":
            how.append(ARMS[arm])
        return hashlib.sha256(repr(how).encode()).hexdigest()[:12]


def main() -> None:
    """Learns, tests and reports."""
    parser = arguments((__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="parquet of period, session, item")
    parser.add_argument("--only", help=f"some of: {', '.join(ARMS)}")
    parser.add_argument("--joint-every", type=int, default=1, help="make anew only in every such cycle")
    parser.add_argument("--kept", type=Path, default=Path(".run/continual"), help="where cycles and models are kept")
    parser.add_argument("--seen", action="store_true", help="learn nothing; report what was seen so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weeks = read_weeks(options.file)
    weeks = weeks[: QUICK_CYCLES + 1] if options.quick else weeks
    kept = Kept(options.kept, file=options.file)
    if not options.seen:
        learn(
            kept, weeks, arms=options.only.split(",") if options.only else list(ARMS), joint_every=options.joint_every
        )
    report("continual", list(rows_of(kept.cycles(), cycles=len(weeks) - 1)))


def learn(kept: Kept, weeks: Sequence[Week], *, arms: Sequence[str], joint_every: int) -> None:
    """Every cycle of these arms that was not seen yet.

    Raises:
        ValueError: there is no such arm.
    """
    if unknown := set(arms) - ARMS.keys():
        raise ValueError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    for arm in arms:
        for week in range(len(weeks) - 1):
            is_due = ARMS[arm].way != "anew" or week % joint_every == 0
            if is_due and not any((one.arm, one.week) == (arm, week) for one in kept.cycles()):
                go_on(kept, weeks, arm=arm, week=week)


def settings_of(arm: Arm) -> TrainerSettings:
    """What the benchmark or the arm says, else the trainer's defaults."""
    given = {"replay_share": arm.replay_share, **TRAINER, **arm.settings}
    return TrainerSettings.model_validate(given)


def go_on(kept: Kept, weeks: Sequence[Week], *, arm: str, week: int) -> None:
    """Learns a week and is tested on the next one."""
    is_stream = ARMS[arm].way == "stream"
    if week == 0 and not is_stream:
        cycle = _first_week(kept, weeks)._replace(arm=arm)
        kept.add(cycle, None)
    else:
        is_new = ARMS[arm].way == "anew" or week == 0
        learner = Learner(NETWORK, settings_of(ARMS[arm])) if is_new else kept.learner(arm, week - 1)
        began = time.process_time()
        _learn(learner, weeks, week, arm=ARMS[arm])
        seconds = time.process_time() - began
        foreseen = _foreseen(learner) if is_stream else {}
        cycle = Cycle(arm, week, _tested(learner, weeks, week), seconds, foreseen)
        kept.add(cycle, learner)
    print(cycle, file=sys.stderr, flush=True)


def _first_week(kept: Kept, weeks: Sequence[Week]) -> Cycle:
    """Learnt once for all arms."""
    for cycle in kept.cycles():
        if cycle.arm == FIRST_WEEK:
            return cycle
    learner = Learner(NETWORK, settings_of(ARMS["joint"]))
    began = time.process_time()
    _admit(learner, weeks[0])
    for _ in passes(learner, weeks[0].sessions, FIRST, replay_share=0.0):
        pass
    seconds = time.process_time() - began
    cycle = Cycle(FIRST_WEEK, 0, _tested(learner, weeks, 0), seconds)
    kept.add(cycle, learner)
    return cycle


def _learn(learner: Learner, weeks: Sequence[Week], week: int, *, arm: Arm) -> None:
    if arm.way == "anew":
        for known in weeks[: week + 1]:
            _admit(learner, known)
        sessions = [session for known in weeks[: week + 1] for session in known.sessions]
        _exhaust(passes(learner, sessions, FIRST, replay_share=0.0))
    elif arm.way == "stream":
        stream(learner, weeks[week])
    else:
        _remember(learner, weeks[week - 1])
        learner.accept()
        _admit(learner, weeks[week])
        _exhaust(passes(learner, weeks[week].sessions, arm.plan, replay_share=arm.replay_share))


def _exhaust(losses: Iterator[float]) -> None:
    for loss in losses:
        print(f"  loss {loss:.3f}", file=sys.stderr, flush=True)


def _admit(learner: Learner, week: Week) -> None:
    sequences = [session.items for session in week.sessions]
    learner.admit(dict.fromkeys(item for items in sequences for item in items), sequences=sequences)


def _remember(learner: Learner, week: Week) -> None:
    """What replay has to choose from: every session of a week that is past."""
    sessions = [session for session in week.sessions if len(session.items) > 1]
    for start in range(0, len(sessions), REMEMBERED_AT_ONCE):
        part = sessions[start : start + REMEMBERED_AT_ONCE]
        learner.remember([session.session_id for session in part], [_stretch(session) for session in part])


def _stretch(session: Session) -> Stretch:
    return Stretch(session.items, (1.0,) * len(session.items))


def passes(learner: Learner, sessions: Sequence[Session], plan: Plan, *, replay_share: float) -> Iterator[float]:
    """All sessions again and again, each step beside replayed ones, the rate falling to the end; mean losses."""
    stretches = [_stretch(session) for session in sessions if len(session.items) > 1]
    each = math.ceil(len(stretches) / SESSIONS)
    for epoch in range(plan.epochs):
        order = learner.rng.permutation(len(stretches)).tolist()
        losses = []
        for step in range(each):
            learner.optimiser.learning_rate = rate_at((epoch * each + step) / (plan.epochs * each), peak=plan.peak_rate)
            chosen = [learner.readable(stretches[index]) for index in order[step * SESSIONS : (step + 1) * SESSIONS]]
            parts = [chosen, learner.reminded(round(replay_share * len(chosen)))]
            parts = [either_way(part, backwards=plan.backwards, rng=learner.rng) for part in parts]
            if epoch >= plan.epochs - plan.apart:
                parts = [apart(part) for part in parts]
            losses.append(learner.step(learner.micro(*parts)).loss)
        yield mean(losses)


def either_way(stretches: Sequence[Stretch], *, backwards: float, rng: np.random.Generator) -> list[Stretch]:
    """Some of them from their end, by chance."""
    is_turned = rng.random(len(stretches)) < backwards
    return [
        Stretch(stretch.items[::-1], stretch.weights[::-1]) if turned else stretch
        for stretch, turned in zip(stretches, is_turned.tolist(), strict=True)
    ]


def apart(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Each click at the end of a sequence of its own, as it is asked for and as ADER's authors learn it.

    The newest item before it then takes the last position; in a whole session that is so for the last click alone.
    """
    return [
        Stretch(stretch.items[:end], stretch.weights[end - 1 : end])
        for stretch in stretches
        for end in range(2, len(stretch.items) + 1)
    ]


def stream(learner: Learner, week: Week) -> None:
    """Once, in the order of arrival, in micro-batches, by the path that examples of the running system take."""
    histories: dict[str, tuple[str, ...]] = {}
    examples = []
    for offset, click in enumerate(week.clicks):
        context = histories.get(click.session_id, ())
        examples.append(_example(click.session_id, context, click.item_id, offset=offset))
        histories[click.session_id] = (*context, click.item_id)[-NETWORK.max_length :]
    size = learner.settings.max_batch
    for start in range(0, len(examples), size):
        learner.learn(examples[start : start + size])


def _foreseen(learner: Learner) -> dict[str, tuple[float, float]]:
    """By the network and by what it has to beat, on the same clicks; what a session has already is no question."""
    scores = {ranker: learner.prequential.cumulative(ranker) for ranker in RANKERS}
    return {ranker: (100 * score.hr10, 100 * score.ndcg10) for ranker, score in scores.items()}


def _example(session_id: str, context: tuple[str, ...], item_id: str, *, offset: int) -> ClickExample:
    return ClickExample(
        id=ExampleId("clicks", 0, offset, 0),
        user_id=session_id,
        context=context,
        item_id=item_id,
        timestamp_ms=START_MS + offset,
        arrived_at_ms=START_MS + offset,
        served=None,
    )


def _tested(learner: Learner, weeks: Sequence[Week], week: int) -> Score:
    """On the next week, of which the items of all weeks so far are known."""
    known = set().union(*(one.items for one in weeks[: week + 1]))
    return examined(learner, questions_of(weeks[week + 1], known))


def rows_of(seen: Sequence[Cycle], *, cycles: int) -> Iterator[Row]:
    """Each arm over the cycles that it went through, beside `joint` over the same ones where that went through them."""
    by_arm = {name: {one.week: one for one in seen if one.arm == name and one.week < cycles} for name in ARMS}
    for name, of_arm in by_arm.items():
        together = sorted(of_arm.keys() & by_arm["joint"].keys())
        if of_arm:
            pairs = [(of_arm[week], by_arm["joint"][week]) for week in together] if name != "joint" else []
            yield from _rows_of_arm(name, list(of_arm.values()), pairs)
            yield from _rows_foreseen(name, of_arm[max(of_arm)])
    for name, (recall, mrr) in PUBLISHED.items():
        yield row(f"published, 16 cycles: {name}: Recall@20", recall, unit="%")
        yield row(f"published, 16 cycles: {name}: MRR@20", mrr, unit="%")


def _rows_of_arm(name: str, ours: Sequence[Cycle], beside: Sequence[tuple[Cycle, Cycle]]) -> Iterator[Row]:
    label = f"{name}, cycles {_span(ours)}"
    goals = (
        [Goal("at least", value, of="ours") for value in PUBLISHED["ADER"]] if name.startswith("replay") else [None] * 2
    )
    yield row(f"{label}: Recall@20", mean(one.score.recall20 for one in ours), unit="%", goal=goals[0])
    yield row(f"{label}: MRR@20", mean(one.score.mrr20 for one in ours), unit="%", goal=goals[1])
    unseen = [one for one in ours if one.week >= QUICK_CYCLES]
    if unseen:
        label = f"{name}, cycles {_span(unseen)}, by which nothing was chosen"
        yield row(f"{label}: Recall@20", mean(one.score.recall20 for one in unseen), unit="%", goal=goals[0])
        yield row(f"{label}: MRR@20", mean(one.score.mrr20 for one in unseen), unit="%", goal=goals[1])
    later = [(one, joint) for one, joint in beside if one.week > 0]
    if not later:
        return
    label = f"{name}, cycles {_span([one for one, _ in later])}"
    for figure, title in (("recall20", "Recall@20"), ("mrr20", "MRR@20")):
        mine, joints = (mean(getattr(pair[side].score, figure) for pair in later) for side in (0, 1))
        yield row(f"{label}: {title}", mine, unit="%", baseline=Baseline("joint", joints))
    seconds = [sum(pair[side].cpu_seconds for pair in later) for side in (0, 1)]
    yield row(
        f"{label}: learning",
        seconds[0],
        unit="CPU s",
        baseline=Baseline("joint", seconds[1]),
        goal=Goal("at most", 0.2),
    )


def _rows_foreseen(name: str, last: Cycle) -> Iterator[Row]:
    """The stream, predicted before it was learnt, beside item-to-item transitions and the recently popular."""
    for which, title in enumerate(("HR@10", "NDCG@10")):
        for ranker in ("transitions", "popular") if last.foreseen else ():
            label = f"{name}, weeks 0-{last.week}, each click before it is learnt: {title}"
            baseline = Baseline(ranker, last.foreseen[ranker][which])
            yield row(label, last.foreseen["sasrec"][which], unit="%", baseline=baseline)


def _span(cycles: Sequence[Cycle]) -> str:
    """The weeks learnt, as 0-3 or 0,4,8."""
    weeks = sorted(one.week for one in cycles)
    if weeks == list(range(weeks[0], weeks[-1] + 1)) and len(weeks) > 1:
        return f"{weeks[0]}-{weeks[-1]}"
    return ",".join(str(week) for week in weeks)


if __name__ == "__main__":
    explained(main)
