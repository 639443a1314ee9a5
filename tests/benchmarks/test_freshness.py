from __future__ import annotations

import math

import numpy as np

from benchmarks.freshness import Examples, Span, Version, ages, rows_of


def test_a_click_is_as_old_as_the_first_version_whose_offsets_lie_past_it() -> None:
    examples = Examples(np.array([0, 1, 2, 3]), np.array([100.0, 110.0, 120.0, 130.0]), np.zeros(4))
    versions = [Version(150.0, {}), Version(200.0, {"0": 2, "1": 9}), Version(300.0, {"0": 3})]

    found = ages(examples, versions, partition=0)

    assert found.tolist() == [100.0, 90.0, 180.0, math.inf]


def test_only_the_clicks_of_a_span_are_in_its_rows() -> None:
    examples = {0: Examples(np.array([0, 1, 2]), np.array([50.0, 110.0, 120.0]), np.array([60.0, 115.0, 130.0]))}
    counts = {"sasrec_examples_trained_total": 0.0, "sasrec_step_seconds_count": 0.0, "sasrec_step_seconds_sum": 0.0}
    done = {"sasrec_examples_trained_total": 64.0, "sasrec_step_seconds_count": 2.0, "sasrec_step_seconds_sum": 0.5}
    span = Span(rate=2, began_ms=100.0, ended_ms=1_100.0, sent=2, before=counts, after=done, processor={}, seconds=2.0)

    rows = {row.what: row for row in rows_of([span], examples, [Version(500.0, {"0": 3})])}

    assert rows["2/s: clicks learnt and published"].met
    assert rows["2/s: click -> published weights, slowest"].ours == 390.0
    assert rows["2/s: click -> its example, p99"].ours == 10.0
    assert rows["2/s: examples per micro-batch"].ours == 32.0
    assert rows["2/s: share of that time inside micro-batches"].ours == 0.25
    assert rows["2/s: versions published a second"].ours == 1.0
