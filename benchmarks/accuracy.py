"""How well does each loss foresee the next item, and how long does it learn for it?

    .venv/bin/python -m benchmarks.accuracy [--data FILE] [--loss NAME …] [--minutes N] [--seeds N] [--threads N]
    .venv/bin/python -m benchmarks.accuracy --cpu-minutes N --threads 1 …      # the same whatever else the machine does

Leave one out: the last item of every user is the test, the one before it says when to stop, the rest is learnt
(benchmarks/protocol.py says how items are ranked). `--data` takes any file whose first two columns are user and item,
in the order of time (parquet, or text with columns parted by tab, comma, semicolon, bar, `::` or space, with a heading
or without); by default the MovieLens-1M of the SASRec paper where it lies in ../shared/data. Every run is
learnt by the code of the scheduled retrain (trainer/passes.py), with the settings of benchmarks/recipes.py.

A run trains for half an hour by the clock, on two threads, unless `--minutes`, `--cpu-minutes` or `--threads` says
otherwise; looks at the validation items come on top. CPU minutes are for a machine that has other work too. The goals
for MovieLens-1M hold for half an hour of a machine of two cores: of a run that took longer, what it had learnt by then
is judged as well, and the goals are held against that. How long the headline took is held against half an hour of two
cores (3,600 CPU seconds) and against half an hour by the clock, apart.

What was learnt is written to `--results` after every look, a file for each loss and seed; a finished run of the same
data, settings and threads is not repeated, unless with `--again`. `--loss rectools` learns with RecTools' SASRec, in an
environment of its own. Published figures stand beside those of the paper's MovieLens-1M only.
"""

from __future__ import annotations

import math
import statistics
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.curves import draw_curves
from benchmarks.fitting import HALF_HOUR, LAST_STEP, ClockName, Run, as_dict, fit
from benchmarks.protocol import CANDIDATES, Figures, Judged, Split, read_split
from benchmarks.recipes import RECIPES, Recipe
from benchmarks.rectools_fitting import NAME as RECTOOLS
from benchmarks.rectools_fitting import fit_rectools, rectools_settings
from trainer.against import loss_of

PAPERS_DATA = Path("../shared/data/sasrec_ml1m.parquet")
PAPERS_SPLIT = (6_040, 3_416, 999_611)
"""Users, items and rows of the file by which the published figures were made."""
QUICK_SECONDS = 8.0
HEADLINE = "bpr"
AS_GOOD = Goal("at least", 0.95)
"""BPR, the default, may be so much worse than any other that learnt as long."""
AS_LONG = 0.1
"""By so much the CPU seconds of two losses may differ, as a share of the longer, for one to be judged by the other."""


class Figure(NamedTuple):
    """What is reported of a run, and how to find it."""

    what: str
    of: Callable[[Run], float]


FIGURES = {
    "hr": Figure("HR@10, whole catalogue", lambda run: _test(run).catalogue.hr),
    "ndcg": Figure("NDCG@10, whole catalogue", lambda run: _test(run).catalogue.ndcg),
    "sampled_hr": Figure("HR@10, 100 sampled", lambda run: _sampled(run).hr),
    "sampled_ndcg": Figure("NDCG@10, 100 sampled", lambda run: _sampled(run).ndcg),
}
TRAINING = Figure("training", lambda run: run.points[-1].cpu_seconds)
BY_THE_CLOCK = Figure("training, by the clock", lambda run: run.points[-1].wall_seconds)
PUBLISHED: dict[tuple[str, str], Baseline] = {
    ("bce", "hr"): Baseline("SASRec, BCE, published", 0.2500),
    ("bce", "ndcg"): Baseline("SASRec, BCE, published", 0.1341),
    ("bce", "sampled_hr"): Baseline("SASRec's paper", 0.8245),
    ("bce", "sampled_ndcg"): Baseline("SASRec's paper", 0.5905),
    ("gbce", "hr"): Baseline("gSASRec, published", 0.3003),
    ("gbce", "ndcg"): Baseline("gSASRec, published", 0.1726),
    ("sampled_softmax", "hr"): Baseline("3,000 negatives, published", 0.3159),
    ("sampled_softmax", "ndcg"): Baseline("3,000 negatives, published", 0.1857),
    **{
        (name, key): Baseline(source, figure)
        for name in ("bpr", "cross_entropy")
        for key, source, figure in (
            ("hr", "cross-entropy, published", 0.3152),
            ("ndcg", "cross-entropy, published", 0.1821),
            ("sampled_hr", "SASRec's paper", 0.8245),
            ("sampled_ndcg", "SASRec's paper", 0.5905),
        )
    },
}
GOALS = {
    ("bce", "hr"): 0.24,
    ("bce", "ndcg"): 0.126,
    ("bce", "sampled_hr"): 0.82,
    ("bce", "sampled_ndcg"): 0.59,
    ("bpr", "hr"): 0.320,
    ("bpr", "ndcg"): 0.187,
    ("bpr", "sampled_hr"): 0.8245,
    ("bpr", "sampled_ndcg"): 0.61,
}
"""For the paper's MovieLens-1M; on other data nothing is promised."""


def main() -> None:
    """Learns what is missing, then reports all that was asked for."""
    options = _options()
    torch.set_num_threads(options.threads)
    stop = threading.Event()
    for number in (SIGINT, SIGTERM):
        signal(number, lambda *_: stop.set())
    split = read_split(options.data)
    if split.candidates() is None:
        _say(f"a user lacks fewer than {CANDIDATES} of the {split.items} items: only the whole catalogue is ranked")
    wanted = [(name, seed) for seed in range(1, options.seeds + 1) for name in options.loss]
    runs = [run for name, seed in wanted if (run := _run(name, seed, split, options, stop)) is not None]
    if not runs:
        raise ValueError(f"nothing was judged; let it run longer, or look for runs elsewhere than {options.results}")
    draw_curves(runs, options.picture or options.results / "curves.png")
    report("accuracy", _rows(runs, is_papers=split.fingerprint()[:3] == PAPERS_SPLIT))


def _options() -> Namespace:
    parser = arguments("how well the next item is foreseen, by loss")
    parser.add_argument("--data", type=Path, default=PAPERS_DATA, help="user and item, in the order of time")
    parser.add_argument("--loss", nargs="+", choices=[*RECIPES, RECTOOLS], default=list(RECIPES), help="which ones")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--minutes", type=float, help="longest training of a run, by the clock (default: 30)")
    bound.add_argument("--cpu-minutes", type=float, help="longest training of a run, in processor time")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each loss")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=Path(".run/accuracy"), help="where runs are written and found")
    parser.add_argument("--picture", type=Path, help="where the learning curves are drawn")
    parser.add_argument("--again", action="store_true", help="repeat runs that are finished")
    parser.add_argument("--found", action="store_true", help="learn nothing: report what lies in --results")
    return parser.parse_args()


def _run(name: str, seed: int, split: Split, options: Namespace, stop: threading.Event) -> Run | None:
    """The finished run that was found, or a new one; None where it was stopped before it could be judged."""
    recipe = _bounded(RECIPES[HEADLINE if name == RECTOOLS else name], options)
    path: Path = options.results / f"{name}_{seed}.json"
    found = None if options.again else _found(name, seed, split, options)
    if found is not None or stop.is_set() or options.found:
        return found
    if name == RECTOOLS:
        told = fit_rectools(recipe, split, seed=seed, threads=options.threads, clock=_clock(options), stop=stop)
    else:
        told = fit(name, recipe, split, seed=seed, clock=_clock(options), stop=stop)
    judged = None
    for run in told:
        _write(path, run)
        _tell(run)
        judged = run if run.test is not None else None
    return judged


def _bounded(recipe: Recipe, options: Namespace) -> Recipe:
    minutes = options.cpu_minutes or options.minutes
    longest = 60.0 * minutes if minutes else recipe.retrain.max_seconds
    seconds = min(QUICK_SECONDS, longest) if options.quick else longest
    return recipe._replace(retrain=recipe.retrain.model_copy(update={"max_seconds": seconds}))


def _clock(options: Namespace) -> ClockName:
    return "cpu" if options.cpu_minutes else "wall"


def _found(name: str, seed: int, split: Split, options: Namespace) -> Run | None:
    """A finished run that learnt the same in the same way, under this name or another.

    Where BPR's negatives are the whole catalogue it is cross-entropy, to the byte (trainer/against.py).
    """
    for twin in _twins(name, split, options):
        run = _read(options, twin, seed)
        if run is None:
            continue
        other = _difference(run, twin, split, options)
        if other is None:
            return msgspec.structs.replace(run, name=name)
        _say(f"{twin}, seed {seed}: what lies in {options.results} was learnt {other}, and is not reported")
    return None


def _twins(name: str, split: Split, options: Namespace) -> list[str]:
    """All names under which the same is learnt, its own first."""
    if name == RECTOOLS:
        return [name]
    lessons = {twin: _lesson(_bounded(recipe, options), split) for twin, recipe in RECIPES.items()}
    return [name, *(twin for twin, lesson in lessons.items() if twin != name and lesson == lessons[name])]


def _difference(run: Run, name: str, split: Split, options: Namespace) -> str | None:
    """In what a run is not the one that is asked for; None where it is."""
    if run.data != split.fingerprint():
        return f"from other data than {options.data}"
    if run.threads != options.threads:
        return f"by {run.threads} threads, not {options.threads} (--threads)"
    if run.clock != _clock(options) and not options.found:
        return "for as long by another clock (--minutes, --cpu-minutes)"
    return None if _is_of(run, name, options) else "by other settings (benchmarks/recipes.py, --minutes)"


def _is_of(run: Run, name: str, options: Namespace) -> bool:
    """Whether it was learnt by what the recipe names; what is left at its default may be another one today."""
    if name == RECTOOLS:
        recipe = _bounded(RECIPES[HEADLINE], options)
        named = {RECTOOLS: rectools_settings(recipe, seed=run.seed, threads=run.threads, clock=_clock(options))}
    else:
        recipe = _bounded(RECIPES[name], options)
        now = as_dict(recipe)
        named = {
            section: {key: now[section][key] for key in settings.model_fields_set}
            for section, settings in recipe._asdict().items()
        }
    if options.found:
        for settings in named.values():
            for bound in ("max_seconds", "seconds", "clock"):
                settings.pop(bound, None)
    return all(
        section in run.settings and settings.items() <= run.settings[section].items()
        for section, settings in named.items()
    )


def _lesson(recipe: Recipe, split: Split) -> dict[str, Any]:
    """The settings, and the loss that comes of them."""
    sections = as_dict(recipe)
    for key in ("loss", "bpr_against"):
        del sections["trainer"][key]
    return sections | {"loss": loss_of(recipe.trainer, items=split.items).__name__}


def _read(options: Namespace, name: str, seed: int) -> Run | None:
    """A finished run; with `--found` also one that somebody stopped, if it was judged."""
    path: Path = options.results / f"{name}_{seed}.json"
    if not path.is_file():
        return None
    run = msgspec.json.decode(path.read_bytes(), type=Run)
    return run if run.finished or (options.found and run.test is not None) else None


def _write(path: Path, run: Run) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    aside.replace(path)


def _tell(run: Run) -> None:
    point = run.points[-1]
    said = f"{point.passes} passes, {point.cpu_seconds:,.0f} CPU-s, validation {_figures(point.validation)}"
    if run.finished and run.test is not None:
        said = f"test {_figures(run.test.catalogue)}"
    _say(f"{run.name}, seed {run.seed}: {said}")


def _say(line: str) -> None:
    Console(stderr=True, width=140).print(line, highlight=False)


def _figures(figures: Figures) -> str:
    return f"HR@10 {figures.hr:.4f}, NDCG@10 {figures.ndcg:.4f}"


def _rows(runs: Sequence[Run], *, is_papers: bool) -> list[Row]:
    names = dict.fromkeys(run.name for run in runs)
    rows = [line for name in names for line in _rows_of(name, _named(runs, name), is_papers=is_papers)]
    rows += [_beside(HEADLINE, other, runs) for other in names if HEADLINE in names and other != HEADLINE]
    return rows


def _beside(name: str, other: str, runs: Sequence[Run]) -> Row:
    """The product's default held against another; judged only where both learnt for about as long."""
    figure = FIGURES["ndcg"]
    ours, theirs = (_mean(_named(runs, each), figure) for each in (name, other))
    seconds, others_seconds = (_mean(_named(runs, each), TRAINING) for each in (name, other))
    is_fair = abs(seconds - others_seconds) <= AS_LONG * max(seconds, others_seconds)
    unlike = "" if is_fair else f", after unlike training: {seconds:,.0f} against {others_seconds:,.0f} CPU-s"
    return row(
        f"{name}: {figure.what}{unlike}",
        ours,
        unit="",
        baseline=Baseline(other, theirs),
        goal=AS_GOOD if is_fair else None,
    )


def _rows_of(name: str, runs: Sequence[Run], *, is_papers: bool) -> list[Row]:
    """What was foreseen and what it cost; the goals are held against what was learnt within half an hour."""
    sooner = [run for run in map(_in_half_an_hour, runs) if run is not None]
    goals = {key: goal for (loss, key), goal in GOALS.items() if loss == name and is_papers}
    published = {key: baseline for (loss, key), baseline in PUBLISHED.items() if loss == name and is_papers}
    if sooner == list(runs):
        rows = _figures_of(name, runs, published=published, goals=goals)
    else:
        rows = _figures_of(name, runs, published=published, goals={})
    if sooner != list(runs) and len(sooner) == len(runs):
        rows += _figures_of(f"{name} by half an hour", sooner, published=published, goals=goals)
    return rows + _costs(name, runs, has_goals=is_papers and name == HEADLINE)


def _in_half_an_hour(run: Run) -> Run | None:
    """As it was judged by what it had learnt by then; None where nobody looked."""
    if run.is_in_half_an_hour:
        return run
    if run.test_in_half_an_hour is None:
        return None
    return msgspec.structs.replace(run, test=run.test_in_half_an_hour, test_sampled=None)


def _figures_of(
    name: str, runs: Sequence[Run], *, published: Mapping[str, Baseline], goals: Mapping[str, float]
) -> list[Row]:
    """The mean over seeds, and how far they lie apart."""
    rows = []
    for key, figure in FIGURES.items():
        if math.isnan(_mean(runs, figure)):
            continue
        goal = Goal("at least", goals[key], of="ours") if key in goals else None
        what = f"{name}: {figure.what}"
        rows.append(row(what, _mean(runs, figure), unit="", baseline=published.get(key), goal=goal))
        if len(runs) > 1:
            values = [figure.of(run) for run in runs]
            rows.append(row(f"{name}: the same, {len(runs)} seeds apart", max(values) - min(values), unit=""))
    return rows


def _costs(name: str, runs: Sequence[Run], *, has_goals: bool) -> list[Row]:
    """Of learning; the headline's time beside half an hour of this kind of machine, by both clocks."""
    times = (
        (TRAINING, "CPU s", Baseline("half an hour of two cores", HALF_HOUR["cpu"])),
        (BY_THE_CLOCK, "s", Baseline("half an hour", HALF_HOUR["wall"])),
    )
    goal = Goal("at most", LAST_STEP)
    rows = [
        row(
            f"{name}: {time.what}",
            _mean(runs, time),
            unit=unit,
            baseline=baseline if has_goals else None,
            goal=goal if has_goals else None,
        )
        for time, unit, baseline in times
    ]
    counts = {
        "threads": lambda run: run.threads,
        "passes": lambda run: run.points[-1].passes,
        "runs that somebody stopped": lambda run: not run.finished,
        "parameters": lambda run: run.parameters,
    }
    return rows + [row(f"{name}: {what}", _mean(runs, Figure(what, of)), unit="") for what, of in counts.items()]


def _named(runs: Sequence[Run], name: str) -> list[Run]:
    return [run for run in runs if run.name == name]


def _mean(runs: Sequence[Run], figure: Figure) -> float:
    return statistics.fmean(figure.of(run) for run in runs)


def _test(run: Run) -> Judged:
    assert run.test is not None, "only judged runs are reported"
    return run.test


def _sampled(run: Run) -> Figures:
    return run.test_sampled or _test(run).sampled or Figures(math.nan, math.nan)


if __name__ == "__main__":
    explained(main)
