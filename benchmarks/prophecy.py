"""Does a learner that serves what it learnt come to believe itself, and do the two terms of the trainer prevent it?

    .venv/bin/python -m benchmarks.prophecy [--quick] [--servings] [--seeds N]

The closed loop of docs/propensities.md section 4 in a world of 300 items and 2,000 users whose truth is known
(`benchmarks.closed_loop`): first a recommender that knows nothing of taste serves 2,000 slates, then the learner
serves 20,000. Four learners see the same kind of log: one that takes every click for taste (naive), one that weighs
clicks by 1/propensity (term b alone), one that learns only inside the slates (term a alone), and the trainer as it
stands (both). The ranking that each ends with is held against the true tastes.

`--servings` adds other temperatures and numbers of exploration slots, with fewer seeds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.closed_loop import ARMS, Arm, Loop, Outcome, Serving, Size, make_world
from benchmarks.common import Baseline, Goal, Row, arguments, report, row

SEEDS, QUICK_SEEDS, OTHER_SEEDS = 5, 1, 2
QUICK = Size(requests=6_000)
OTHER_SERVINGS = tuple(Serving(t, m) for t in (0.0, 0.5) for m in (0, 1, 2) if (t, m) != (0.5, 1))
NAMES = {"ndcg10": "true NDCG@10", "coverage": "coverage", "gini": "Gini", "top_share": "clicks of the top 1 %"}


def main() -> None:
    """Runs every arm in every world and reports."""
    parser = arguments(__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--servings", action="store_true", help="other temperatures and exploration slots, too")
    parser.add_argument("--seeds", type=int, default=None, help=f"worlds, {SEEDS} where not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else Size()
    seeds = range(1, 1 + (options.seeds or (QUICK_SEEDS if options.quick else SEEDS)))
    rows = [*rows_of(Serving(), outcomes(ARMS, size, Serving(), seeds), goal=Goal("at least", 0.25, of="ours"))]
    for serving in OTHER_SERVINGS if options.servings else ():
        arms = [arm for arm in ARMS if arm.name in ("naive", "both")]
        rows += rows_of(serving, outcomes(arms, size, serving, range(1, 1 + OTHER_SEEDS)), goal=None)
    report("prophecy", rows)


def outcomes(arms: Sequence[Arm], size: Size, serving: Serving, seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """One run of every arm in each world; worlds, users and legacy log follow from the seed alone."""
    found: dict[str, list[Outcome]] = {arm.name: [] for arm in arms}
    for seed in seeds:
        world = make_world(size, np.random.default_rng(seed))
        for arm in arms:
            outcome = Loop(world, size, arm=arm, serving=serving, seed=seed).run()
            found[arm.name].append(outcome)
            print(f"{serving} seed {seed} {arm.name}: {outcome}", file=sys.stderr, flush=True)
    return found


def rows_of(serving: Serving, found: dict[str, list[Outcome]], *, goal: Goal | None) -> Iterator[Row]:
    """Every figure of every arm beside the naive one's, and by how much both terms are ahead."""
    where = f"T={serving.temperature:g} m={serving.exploration_slots}"
    naive = found["naive"]
    for name, arm in found.items():
        for field, title in NAMES.items():
            values, base = ([getattr(outcome, field) for outcome in many] for many in (arm, naive))
            what = f"{where} {name}: {title} ({spread(values)})"
            baseline = None if name == "naive" else Baseline("naive", statistics.mean(base))
            yield row(what, statistics.mean(values), unit="", baseline=baseline)
    ahead = [one.ndcg10 - other.ndcg10 for one, other in zip(found["both"], naive, strict=True)]
    what = f"{where} both minus naive: true NDCG@10 ({spread(ahead)})"
    yield row(what, statistics.mean(ahead), unit="", goal=goal)


def spread(values: Sequence[float]) -> str:
    """The standard deviation over worlds."""
    if len(values) < 2:
        return "one world"
    return f"sd {statistics.stdev(values):.3f}, {len(values)} worlds"


if __name__ == "__main__":
    main()
