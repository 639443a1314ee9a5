"""What the trainer shows of itself, in the default Prometheus registry."""

from __future__ import annotations

import math
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from trainer.confidence import Estimate
from trainer.learner import Learner, Learnt
from trainer.prequential import KINDS, METRICS, RANKERS, Kind, Prequential
from trainer.weights import Lack

EXAMPLES_TRAINED = Counter("sasrec_examples_trained_total", "Examples that changed the model.")
EXAMPLES_DROPPED = Counter(
    "sasrec_examples_dropped_total",
    "Examples that changed nothing: repeats, unreadable or not finite ones, those that made the loss spike, those "
    "beyond what one user or one item may teach, clicks of an invalid propensity.",
    ["reason"],
)
PREQUENTIAL_HR10 = Gauge(
    "sasrec_prequential_hr10",
    "Share of the clicks of the window that the ranker had among its first ten, of all that the user does not have.",
    ["ranker"],
)
PREQUENTIAL_NDCG10 = Gauge(
    "sasrec_prequential_ndcg10", "NDCG@10 of the ranker over the clicks of the window.", ["ranker"]
)
PREQUENTIAL_MRR = Gauge(
    "sasrec_prequential_mrr", "Mean of 1 / (rank + 1) over the whole catalogue, same clicks.", ["ranker"]
)
PREQUENTIAL_COVERAGE = Gauge(
    "sasrec_prequential_coverage",
    "Share of the catalogue that stood in one of the ranker's lists of ten within the window.",
    ["ranker"],
)
PREQUENTIAL_FIGURE = Gauge(
    "sasrec_prequential",
    "The same figures for the clicks of one kind, with the ends of their 95 % intervals: metric hr10, ndcg10, mrr; "
    "clicks all, organic, served, by item age, by user length; bound value, low, high.",
    ["metric", "ranker", "clicks", "bound"],
)
PREQUENTIAL_LEAD = Gauge(
    "sasrec_prequential_lead",
    "NDCG@10 of the network minus that of a baseline on the same clicks, with the ends of its 95 % interval.",
    ["over", "clicks", "bound"],
)
PREQUENTIAL_CLICKS = Gauge(
    "sasrec_prequential_clicks", "Clicks of the window that were predicted before they were learnt.", ["clicks"]
)
PREQUENTIAL_SHARE = Gauge(
    "sasrec_prequential_share", "Share of the window's clicks that were predicted; the others are stood for."
)
LOSS = Gauge("sasrec_loss", "Training loss of the last micro-batch.")
LOSS_Z_SCORE = Gauge(
    "sasrec_loss_z_score", "Robust standard deviations by which the last loss stood above those before it."
)
SPIKES = Counter("sasrec_loss_spikes_total", "Micro-batches whose loss stood far above those before it.")
PUBLICATION_HELD = Gauge("sasrec_publication_held", "1 while nothing is published because the loss spikes.")
ROLLBACKS = Counter(
    "sasrec_rollbacks_total", "Times that learning or serving went back to an earlier model by itself.", ["reason"]
)
EXAMPLES_WAITING = Gauge("sasrec_examples_waiting", "Examples on the broker that the trainer has not read yet.")
MICRO_BATCH_EXAMPLES = Histogram(
    "sasrec_micro_batch_examples",
    "Examples learnt at once: more when the trainer is behind.",
    buckets=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)
PROBATION_LEAD = Gauge(
    "sasrec_probation_lead",
    "NDCG@10 of the network less that of item-to-item transitions, before the last promotion and since, while the "
    "promoted model is watched.",
    ["when"],
)
STEP_SECONDS = Histogram(
    "sasrec_step_seconds",
    "From a micro-batch in hand to the weights changed by it, in seconds.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
VERSIONS_PUBLISHED = Counter(
    "sasrec_versions_published_total", "Versions announced by this trainer: deltas, and full checkpoints.", ["kind"]
)
DELTA_BYTES = Counter("sasrec_delta_bytes_total", "Bytes of the deltas written.")
PUBLICATION_FAILURES = Counter(
    "sasrec_publication_failures_total", "Versions that could not be written or announced; the next one tries again."
)
PRUNING_FAILURES = Counter(
    "sasrec_pruning_failures_total", "Publications after which old checkpoints could not be removed; they stay."
)
PUBLISH_SECONDS = Histogram(
    "sasrec_publish_seconds",
    "From a version copied to its announcement acknowledged, beside learning, in seconds.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
PUBLISHED_VERSION = Gauge("sasrec_published_version", "Version of the newest checkpoint announced by this trainer.")
EFFECTIVE_SAMPLE_SIZE = Gauge(
    "sasrec_effective_sample_size", "Of the served clicks in the window, with the cap in force."
)
PROPENSITY_CAP = Gauge("sasrec_propensity_cap", "Largest 1/propensity in force.")
CLICKS_WITHOUT_PROPENSITY = Counter(
    "sasrec_clicks_without_propensity_total",
    "Served clicks without a propensity, by reason: not_logged (estimated here), or promised and missing, "
    "not_a_number, not_positive, above_one (not learnt from).",
    ["reason"],
)
SLATE_ITEMS_WITHOUT_PROPENSITY = Counter(
    "sasrec_slate_items_without_propensity_total",
    "Items of closed slates without a propensity, by the same reasons: those not logged take part inside their slate, "
    "the others are left out there, too.",
    ["reason"],
)
for _lack in get_args(Lack):
    # A counter that begins at 1 has not increased, for Prometheus: alerts would miss the first one.
    CLICKS_WITHOUT_PROPENSITY.labels(_lack)
CLICKS_WEIGHED = Counter(
    "sasrec_clicks_weighed_total",
    "Clicks by what is known of how they were served (docs/propensities.md section 4): organic, exact, estimated, "
    "unknown, fixed or invalid.",
    ["outcome"],
)
CLICK_WEIGHT = Histogram(
    "sasrec_click_weight",
    "Weights of served clicks that have a propensity, over their running mean.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
SLOTS_SHOWN = Gauge(
    "sasrec_slots_shown", "Slots of the closed slates of the window, by source and position.", ["source", "position"]
)
CLICK_RATE = Gauge("sasrec_click_rate", "Clicks per slot, same slots.", ["source", "position"])
EXPLORED_OVER_EXPLOITED = Gauge(
    "sasrec_explored_over_exploited_clicks",
    "Clicks per explored slot over clicks per exploited slot: 1 where exploring costs nothing.",
)
SERVED_COVERAGE = Gauge(
    "sasrec_served_coverage", "Share of the catalogue that stood in a closed slate of the window, of any recommender."
)
SERVED_GINI = Gauge(
    "sasrec_served_gini",
    "Of how often items stood in these slates: 0 where all did equally often, towards 1 where one had every slot.",
)
CATALOGUE_ITEMS = Gauge("sasrec_catalogue_items", "Items that have a row.")
TRAINED_THROUGH_ARRIVAL = Gauge(
    "sasrec_trained_through_arrival_seconds",
    "Kafka's timestamp of the newest click learnt, in seconds since 1970.",
)


def observe_version(*, full: bool, delta_bytes: int) -> None:
    """Shows what was published."""
    VERSIONS_PUBLISHED.labels("full" if full else "delta").inc()
    DELTA_BYTES.inc(delta_bytes)


def observe_micro_batch(learner: Learner, learnt: Learnt) -> None:
    """Shows what a micro-batch did."""
    EXAMPLES_TRAINED.inc(learnt.trained)
    MICRO_BATCH_EXAMPLES.observe(learnt.trained)
    for reason, count in learnt.flooded.items():
        EXAMPLES_DROPPED.labels(reason).inc(count)
    LOSS_Z_SCORE.set(learnt.z_score)
    for lack, count in learnt.weights.lacks.items():
        CLICKS_WITHOUT_PROPENSITY.labels(lack).inc(count)
    for lack, count in learnt.slate_lacks.items():
        SLATE_ITEMS_WITHOUT_PROPENSITY.labels(lack).inc(count)
    for outcome, count in learnt.weights.outcomes.items():
        CLICKS_WEIGHED.labels(outcome).inc(count)
    EXAMPLES_DROPPED.labels("propensity").inc(learnt.weights.outcomes["invalid"])
    for weight in learnt.weights.weight_N[learnt.weights.weighed].tolist():
        CLICK_WEIGHT.observe(weight)
    LOSS.set(learnt.stepped.loss)
    PROPENSITY_CAP.set(learner.weigher.cap)
    EFFECTIVE_SAMPLE_SIZE.set(learner.weigher.effective_sample_size())
    CATALOGUE_ITEMS.set(len(learner.catalogue))
    if learner.trained_through_arrival_ms is not None:
        TRAINED_THROUGH_ARRIVAL.set(learner.trained_through_arrival_ms / 1_000)


def observe_served(learner: Learner) -> None:
    """Shows what was served and clicked lately. It looks at every item that was: not for every micro-batch."""
    for cell in learner.slots.cells():
        SLOTS_SHOWN.labels(cell.source, cell.place).set(cell.shown)
        CLICK_RATE.labels(cell.source, cell.place).set(cell.rate)
    EXPLORED_OVER_EXPLOITED.set(learner.slots.explored_over_exploited())
    spread = learner.exposure.spread(items=len(learner.catalogue))
    SERVED_COVERAGE.set(math.nan if spread is None else spread.coverage)
    SERVED_GINI.set(math.nan if spread is None else spread.gini)


def observe_foresight(prequential: Prequential, *, items: int) -> None:
    """Shows how well clicks were foreseen. It costs milliseconds: not for every micro-batch."""
    _show_clicks(prequential)
    overall = dict(zip(METRICS, (PREQUENTIAL_HR10, PREQUENTIAL_NDCG10, PREQUENTIAL_MRR), strict=True))
    for figure in prequential.figures():
        for bound, value in figure.estimate._asdict().items():
            PREQUENTIAL_FIGURE.labels(figure.metric, figure.ranker, figure.kind, bound).set(value)
        if figure.kind == "all":
            overall[figure.metric].labels(figure.ranker).set(figure.estimate.value)
    for lead in prequential.leads():
        for bound, value in lead.estimate._asdict().items():
            PREQUENTIAL_LEAD.labels(lead.over, lead.kind, bound).set(value)
    for ranker in RANKERS:
        PREQUENTIAL_COVERAGE.labels(ranker).set(prequential.coverage(ranker, items=items))


def _show_clicks(prequential: Prequential) -> None:
    for kind in KINDS:
        clicks, stood_for = prequential.asked(kind)
        PREQUENTIAL_CLICKS.labels(kind).set(clicks)
        if kind == "all":
            PREQUENTIAL_SHARE.set(clicks / stood_for if clicks else 1.0)
        if not clicks:
            _forget(kind)


def _forget(kind: Kind) -> None:
    """NaN for what the window no longer has: a figure that stays would be taken for a new one."""
    for bound in Estimate._fields:
        for ranker in RANKERS:
            for metric in METRICS:
                PREQUENTIAL_FIGURE.labels(metric, ranker, kind, bound).set(math.nan)
        for over in RANKERS[1:]:
            PREQUENTIAL_LEAD.labels(over, kind, bound).set(math.nan)
