"""A promoted model that foresees worse than the one before it goes again, by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from model.checkpoint import pinned_versions, read_serving
from model.settings import ModelSettings
from stream.clients import producer
from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, in_batches, send
from tests.trainer.doomed_trainer import TRAINER
from tests.trainer.running import running, trained
from trainer.cut import Cut
from trainer.examples import newest_announcement
from trainer.learner import Learner
from trainer.live import read_live
from trainer.prequential import MISS, RANKERS, Judged
from trainer.probation import LOOKS, STRIKES, Finding, Lead, Probation, lead_of
from trainer.publish import announce, new_lineage, write
from trainer.state import resume

CLICKS = 1_000
EACH = CLICKS // LOOKS
BEFORE = Lead(0.5, 1e-6)

Wait = Callable[[Callable[[], Any]], Any]


def judged(count: int, *, hits: int) -> Judged:
    """Clicks of as many users; the network foresees some of them, transitions none."""
    rank_NK = np.full((count, len(RANKERS)), MISS, dtype=np.int64)
    rank_NK[:hits, RANKERS.index("sasrec")] = 0
    number_N = np.arange(count)
    return Judged(
        rank_NK=rank_NK,
        served_N=number_N < 0,
        at_ms_N=number_N,
        user_N=number_N,
        age_N=np.zeros_like(number_N),
        length_N=np.zeros_like(number_N),
        weight_N=np.ones(count),
    )


def findings(*shares: float) -> list[Finding]:
    """What is found at each look, where so large a share of the clicks before it was foreseen."""
    probation = Probation("champion", BEFORE)
    found: list[Finding] = []
    for share in shares:
        probation.observe(judged(EACH, hits=round(share * EACH)))
        found.append(probation.look(clicks=CLICKS))
    return found


def test_a_model_as_good_as_the_one_before_passes_when_it_has_had_its_clicks() -> None:
    assert findings(*[0.5] * LOOKS) == ["open"] * (LOOKS - 1) + ["passed"]


def test_a_worse_model_goes_once_several_looks_in_a_row_say_so() -> None:
    assert findings(*[0.1] * STRIKES) == ["open"] * (STRIKES - 1) + ["worse"]


def test_a_bad_beginning_that_is_made_up_for_is_forgiven() -> None:
    found = findings(*[0.3] * (STRIKES - 1), *[1.0] * (LOOKS - STRIKES + 1))

    assert "worse" not in found
    assert found[-1] == "passed"


def test_between_two_looks_nothing_is_found() -> None:
    probation = Probation("champion", BEFORE)
    probation.observe(judged(EACH - 1, hits=0))

    assert probation.look(clicks=CLICKS) == "open"
    assert (probation.looks, probation.strikes) == (0, 0)


def test_a_difference_within_the_confidence_is_no_strike() -> None:
    unsure = Probation("champion", Lead(0.5, 1.0))
    unsure.observe(judged(EACH, hits=0))

    assert unsure.look(clicks=CLICKS) == "open"
    assert unsure.strikes == 0


def test_one_user_alone_says_nothing() -> None:
    probation = Probation("champion", BEFORE)
    probation.observe(judged(EACH, hits=0)._replace(user_N=np.zeros(EACH, dtype=np.int64)))

    assert probation.look(clicks=CLICKS) == "open"
    assert math.isinf(probation.since().variance)
    assert probation.strikes == 0


def test_what_is_known_of_a_promoted_model_survives_a_restart(tmp_path: Path) -> None:
    learner = Learner(ModelSettings(max_length=8, units=8, blocks=1), TRAINER)
    learner.learn(clicks(200))
    lead = lead_of(learner.prequential)
    assert lead is not None
    learner.probation = Probation("champion", lead)
    learner.learn(clicks(200, seed=2, first_offset=200))

    resumed = resume(write(learner, Cut(), root=tmp_path, lineage="lineage", version=1).path, TRAINER).learner

    assert resumed.probation == learner.probation
    assert resumed.probation is not None
    assert len(resumed.probation.lead) > 0


@pytest.mark.broker
def test_a_promoted_model_that_does_worse_is_taken_back_and_nothing_is_lost(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    """The promoted one has a single unit: it cannot learn what the one before it knew."""
    settings = TRAINER.model_copy(update={"probation_clicks": 400, "learning_rate": 0.02})
    examples = clicks(2_400, partitions=2)
    poor = Learner(ModelSettings(max_length=1, units=1, blocks=0), settings)
    for batch in in_batches(examples[:40], 20):
        poor.learn(batch)
    before = rolled_back()

    with running(kafka, tmp_path, settings) as published, producer(kafka) as sender:
        send(kafka, examples[:1_600])
        wait_until(trained(published, 1_600))
        champion, lineage = published[-1], new_lineage()
        above = champion.generation + 1
        announce(sender, kafka, write(poor, CUT, root=tmp_path, lineage=lineage, version=1, generation=above))
        wait_until(lambda: published[-1].lineage == lineage or rolled_back() > before)
        send(kafka, examples[1_600:])
        wait_until(lambda: rolled_back() > before)
        wait_until(lambda: published[-1].lineage == champion.lineage and trained(published, 2_400)())

    live = newest_announcement(kafka).announcement
    assert live is not None
    assert (live.lineage, live.examples_trained) == (champion.lineage, 2_400)
    assert live.generation > above
    assert read_live(live).serving.manifest.settings == read_serving(tmp_path / live.path).manifest.settings
    assert rolled_back() == before + 1
    assert pinned_versions(tmp_path / champion.lineage), "what was brought back is never pruned"


CUT = Cut(offsets={0: 20, 1: 20}, marks={"clicks": {0: (19, 0), 1: (19, 0)}})


def rolled_back() -> float:
    return REGISTRY.get_sample_value("sasrec_rollbacks_total", {"reason": "worse"}) or 0.0
