"""How well does each loss foresee the next item, and how long does it learn for it?

    .venv/bin/python -m benchmarks.accuracy [--data FILE] [--loss NAME …] [--minutes N] [--seeds N] [--threads N]

Leave one out: the last item of every user is the test, the one before it says when to stop, the rest is learnt
(benchmarks/protocol.py says how items are ranked). `--data` takes any file whose first two columns are user and item,
in the order of time (parquet, or text with columns parted by tab, comma, semicolon, bar, `::` or space, with a heading
or without); by default the MovieLens-1M of the SASRec paper where it lies in ../shared/data. Every run is
learnt by the code of the scheduled retrain (trainer/passes.py), with the settings of benchmarks/recipes.py.

`--minutes` bounds the training of each run, in CPU minutes: they are the same whatever else the machine does. What was
learnt is written to `--results` after every look, a file for each loss and seed; a finished run of the same data,
settings and threads is not repeated, unless with `--again`. `--loss rectools` learns with RecTools' SASRec, in an
environment of its own. Published figures stand beside those of the paper's MovieLens-1M only.
"""

from __future__ import annotations

import math
import statistics
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.curves import draw_curves
from benchmarks.fitting import Run, as_dict, fit
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
    parser.add_argument("--minutes", type=float, help="longest training of a run, in CPU minutes")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each loss")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
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
        told = iter([fit_rectools(recipe, split, seed=seed, threads=options.threads)])
    else:
        told = fit(name, recipe, split, seed=seed, stop=stop)
    judged = None
    for run in told:
        _write(path, run)
        _tell(run)
        judged = run if run.test is not None else None
    return judged


def _bounded(recipe: Recipe, options: Namespace) -> Recipe:
    seconds = QUICK_SECONDS if options.quick else 60.0 * (options.minutes or math.inf)
    longest = min(seconds, recipe.retrain.max_seconds)
    return recipe._replace(retrain=recipe.retrain.model_copy(update={"max_seconds": longest}))


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
    return None if _is_of(run, name, options) else "by other settings (benchmarks/recipes.py, --minutes)"


def _is_of(run: Run, name: str, options: Namespace) -> bool:
    """Whether it was learnt by what the recipe names; what is left at its default may be another one today."""
    if name == RECTOOLS:
        recipe = _bounded(RECIPES[HEADLINE], options)
        named = {RECTOOLS: rectools_settings(recipe, seed=run.seed, threads=run.threads)}
    else:
        recipe = _bounded(RECIPES[name], options)
        now = as_dict(recipe)
        named = {
            section: {key: now[section][key] for key in settings.model_fields_set}
            for section, settings in recipe._asdict().items()
        }
    if options.found:
        for settings in named.values():
            settings.pop("max_seconds", None)
            settings.pop("seconds", None)
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
    if run.test is not None:
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
    """The mean over seeds, how far they lie apart, and what it cost."""
    rows = []
    for key, figure in FIGURES.items():
        if math.isnan(_mean(runs, figure)):
            continue
        goal = GOALS.get((name, key)) if is_papers else None
        rows.append(
            row(
                f"{name}: {figure.what}",
                _mean(runs, figure),
                unit="",
                baseline=PUBLISHED.get((name, key)) if is_papers else None,
                goal=None if goal is None else Goal("at least", goal, of="ours"),
            )
        )
        if len(runs) > 1:
            values = [figure.of(run) for run in runs]
            rows.append(row(f"{name}: the same, {len(runs)} seeds apart", max(values) - min(values), unit=""))
    costs = {
        "training": (lambda run: run.points[-1].cpu_seconds, "CPU s"),
        "training, by the clock": (lambda run: run.points[-1].wall_seconds, "s"),
        "passes": (lambda run: run.points[-1].passes, ""),
        "runs that somebody stopped": (lambda run: not run.finished, ""),
        "parameters": (lambda run: run.parameters, ""),
    }
    return rows + [
        row(f"{name}: {what}", _mean(runs, Figure(what, of)), unit=unit) for what, (of, unit) in costs.items()
    ]


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
