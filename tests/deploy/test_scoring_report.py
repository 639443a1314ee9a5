"""What a scoring worker shows of the slates that stand on `recommendations`."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from deploy.scoring.report import Report
from model.policies import Eligible, Policy, Shortlist, greedy, mixture
from stream.events import Recommendation, RecommendedItem

NOW_MS = 1_700_000_000_000


def slates(name: str, policy: Policy, *, version: str | None = None) -> list[Recommendation]:
    """Drawn from thirty items."""
    row_N = np.arange(1, 31)
    shortlist = Shortlist(row_N[:20], np.linspace(1.0, 0.0, 20), Eligible(row_N=row_N, excluded_X=row_N[:0]))
    drawn = policy.draw_many(shortlist, slate_size=5, count=2_000, rng=np.random.default_rng(1))
    rows = zip(drawn.row_K.tolist(), drawn.propensity_K.tolist(), strict=True)
    return [
        Recommendation(
            request_id=f"r{number}",
            user_id="u",
            policy=name,
            generated_at_ms=NOW_MS,
            eligible_count=30,
            model_version=version,
            items=tuple(
                RecommendedItem(item_id=str(row), position=slot, propensity=chance, propensity_kind="exact")
                for slot, (row, chance) in enumerate(zip(row_K, chance_K, strict=True))
            ),
        )
        for number, (row_K, chance_K) in enumerate(rows)
    ]


def test_the_live_check_is_one_where_every_item_has_a_chance_and_tells_policies_apart() -> None:
    report = Report()
    exploring = slates("exploring", mixture(temperature=0.5, exploration_slots=1))
    narrow = slates("narrow", greedy())

    report.acknowledged([*exploring, *narrow], [NOW_MS] * 4_000)

    told = {
        name: REGISTRY.get_sample_value("sasrec_propensity_check", {"policy": name}) for name in ("exploring", "narrow")
    }
    assert told["exploring"] == pytest.approx(1.0, abs=0.1)
    assert told["narrow"] == pytest.approx(5 / 30)


def test_recommenders_that_serve_two_models_at_a_time_do_not_count_as_swaps() -> None:
    report = Report()
    (first, *_), (second, *_) = slates("a", greedy(), version="x/1"), slates("b", greedy(), version="y/9")

    report.acknowledged([first, second, first, second], [NOW_MS] * 4)

    assert REGISTRY.get_sample_value("sasrec_recommended_versions") == 2
