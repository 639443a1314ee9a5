"""Settings of the trainer, of the full retrain and of the gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model.settings import Section


class TrainerSettings(Section):
    """Learning from the stream in micro-batches."""

    loss: Literal["bpr", "bce", "gbce", "sampled_softmax", "cross_entropy"] = "bpr"
    """What a click against the catalogue costs: BPR, BCE (the paper), gBCE, softmax over sampled negatives, or over all
    items (cross_entropy, which draws none).
    """
    negatives: Annotated[int, Field(ge=1, le=100_000)] = 4_096
    """Items drawn as negatives. Softmax, BPR's too, is taken over all items where a catalogue has no more."""
    negatives_from: Literal["catalogue", "catalogue_for_each", "batch"] = "catalogue"
    """`catalogue`: drawn once for a micro-batch and shared by its clicks. `catalogue_for_each`: for every click apart,
    none of them an item of its sequence; with `negatives = 1` the paper's BCE. `batch`: the other clicks of the
    micro-batch, at most `negatives` of them, corrected for popularity (sampled_softmax, bpr).
    """
    bpr_against: Literal["soft_maximum", "mean"] = "soft_maximum"
    """What BPR, -ln sigmoid(s_i - s_j), does with many negatives j: `mean` averages over them; `soft_maximum` takes
    their soft maximum ln(sum_j e^s_j) for s_j, so that the hardest ones teach the most.
    """
    softmax_products: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the factors of products with all items are rounded to, where softmax is taken over all: `bfloat16` is faster
    on processors that have it (AVX-512 BF16, GPUs) and slower elsewhere; `auto` takes it there alone.
    """
    negative_popularity: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Negatives are drawn in proportion to (recent clicks + 1) to this power: 0 is uniform over the catalogue."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 3e-3
    """Adam's step size."""
    gradient_norm: Annotated[float, Field(gt=0.0)] = 5.0
    """Largest L2 norm of a micro-batch's gradient; longer ones are shortened to it."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of every weight, times the rate, that a step takes away (AdamW); of a row of the item table for the steps
    that it sat out as well.
    """
    min_batch: Annotated[int, Field(ge=1)] = 32
    """Examples that are learnt at once when the trainer keeps up; fewer only after `max_wait_seconds`, and never more
    than `max_batch`.
    """
    max_batch: Annotated[int, Field(ge=1)] = 256
    """Examples learnt at once when it is behind; more are faster and, from a few hundred on, learnt less well."""
    catch_up_batch: Annotated[int, Field(ge=1)] | None = None
    """Where more than four times `max_batch` wait, a quarter of what waits is learnt at once, but at most so many.
    Above `max_batch`, say 1,024: sooner up to date after a burst, for the price of learning less from each click of it.
    Absent, or not above it: never more than `max_batch`.
    """
    max_wait_seconds: Annotated[float, Field(ge=0.0)] = 0.5
    """Longest wait for `min_batch` examples, in seconds."""
    in_slate_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the pairs inside a slate, docs/propensities.md term (a), beside the catalogue term (b)."""
    propensity_cap: Annotated[float, Field(ge=1.0)] | None = None
    """Largest 1/propensity. Absent: the largest cap that keeps the effective sample size of the window at
    `min_effective_share`.
    """
    min_effective_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.35
    """Effective sample size over the number of clicks in the window that the adaptive cap keeps."""
    position_bias: Annotated[float, Field(ge=0.0, le=5.0)] = 0.5
    """theta_k = 1 / (k + 1) ** position_bias, never below 0.05: the chance that slot k is looked at, where no
    impression says so.
    """
    positions_from: Literal["setting", "explored"] = "setting"
    """Whether theta_k is what `position_bias` says, or that corrected by where explored items were clicked in the
    window: needs exploration slots, and hundreds of clicks on them.
    """
    weight_window: Annotated[int, Field(ge=1)] = 10_000
    """Served clicks over which weights are normalised and the effective sample size is kept."""
    min_context: Annotated[int, Field(ge=1)] = 25
    """Where several clicks of one user are learnt as one sequence, each sees at least this many of the items before
    it, or all if there are fewer; from `model.max_length` on, every click sees all that the network can read.
    """
    spike_z_score: Annotated[float, Field(ge=3.0)] = 10.0
    """A micro-batch whose loss lies so many robust standard deviations above the last ones is a spike."""
    spikes: Annotated[int, Field(ge=2)] = 3
    """Spikes in close succession that lead back to the last good checkpoint; from the first on nothing is published."""
    probation_clicks: Annotated[int, Field(ge=0)] = 5_000
    """Clicks after which a promoted model has shown itself; where it foresees worse than the one before it, that one
    comes back by itself. 0: no promoted model is watched.
    """
    flood_window: Annotated[int, Field(ge=1)] = 10_000
    """Examples of a window in which a single user and a single item are bounded."""
    user_flood_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Largest share of the window's examples that one user may teach; what is beyond is counted and left out."""
    item_flood_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Largest share of the window's examples that may be clicks on one item."""
    replay_share: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """Replayed users per user of a micro-batch."""
    replay_positions: Annotated[int, Field(ge=1)] = 2_048
    """Most clicks that are replayed in a micro-batch, in whole sequences: when it is behind, the trainer learns larger
    micro-batches and replays less for each click.
    """
    replay_users: Annotated[int, Field(ge=0)] = 20_000
    """Users whose last sequence is kept for replay: a reservoir."""
    replay_choice: Literal["uniform", "per_item", "herding"] = "uniform"
    """Who stays in the reservoir: `uniform` over all users there ever were; `per_item`, equally many for every item
    that sequences end in; `herding`, of these the ones that stand best for all of them.
    """
    distillation: Annotated[float, Field(ge=0.0)] = 0.0
    """What it costs to predict otherwise, on replayed sequences, than the weights accepted last; 0 is nothing."""
    consolidation: Annotated[float, Field(ge=0.0)] = 0.0
    """What it costs to move weights that mattered for what was accepted last (elastic weight consolidation); 1: it
    rests on as many positions as a micro-batch, 0: nothing.
    """
    accept_examples: Annotated[int, Field(ge=1)] = 50_000
    """Examples after which the weights as they are count as accepted, for `distillation` and `consolidation`."""
    new_rows: Literal["random", "neighbours"] = "neighbours"
    """Where the row of an item begins that is seen for the first time: near nothing, or among the items beside it."""
    predicted_clicks: Annotated[int, Field(ge=1)] = 32
    """Most clicks of a micro-batch that are predicted before they are learnt; of more, so many at random stand for all.
    """
    metric_window_seconds: Annotated[float, Field(ge=60.0)] = 86_400.0
    """Event time over which the moving prequential metrics are taken, in seconds."""
    metric_window: Annotated[int, Field(ge=1)] = 10_000
    """Most predicted clicks, the newest ones, over which they are taken."""
    popular_half_life: Annotated[float, Field(gt=0.0)] = 10_000.0
    """Clicks after which a click counts half in the recently-popular baseline."""
    transition_pairs: Annotated[int, Field(ge=1)] = 2_000_000
    """Pairs of successive items that the item-to-item baseline remembers; 12 bytes each."""
    admit_after: Annotated[int, Field(ge=1)] = 1
    """Clicks on an item after which it gets a row of the item table; until then it is no item to the model. 1: also an
    item that is only seen in a history gets one.
    """
    waiting_items: Annotated[int, Field(ge=0)] = 100_000
    """Items below `admit_after` whose clicks are counted; the least recently clicked is forgotten past it."""
    max_items: Annotated[int, Field(ge=1)] = 1_000_000
    """Rows of the item table; the least recently used goes when another comes."""
    publish_seconds: Annotated[float, Field(gt=0.0)] = 1.0
    """Time between published versions, in seconds, when something was learnt."""
    full_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    """Time between full checkpoints, in seconds: what a killed trainer learns again at most. Versions between them are
    deltas.
    """
    publish_precision: Literal["float32", "bfloat16"] = "float32"
    """What weights are rounded to in published versions: `bfloat16` makes deltas less than half as large, and what is
    served differs from what is learnt by 0.4 % at most. Learning and full checkpoints keep float32.
    """
    keep_checkpoints: Annotated[int, Field(ge=2)] = 4
    """Full checkpoints kept per lineage; the live one, promoted ones and those that settings serve from always stay,
    and the deltas since the last but one.
    """
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of torch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network learns; auto takes CUDA when it is there."""
    network_products: Literal["float32", "bfloat16"] = "float32"
    """What the network's products are made of on CUDA: `bfloat16` is torch's autocast, with flash attention where it
    applies. On a CPU it changes nothing.
    """
    network_shapes: Literal["as_they_come", "fixed"] = "as_they_come"
    """On CUDA, `fixed` pads sequences to few lengths and counts and compiles the blocks for each (torch.compile):
    seconds once for a shape, fewer launches from then on. On a CPU it changes nothing.
    """
    seed: int = 1
    """Of weights, dropout, negatives and replay."""


class RetrainSettings(Section):
    """The scheduled full retrain from the `sequences` topic."""

    cron: str = "17 4 * * *"
    """When, as a five-field cron expression in UTC."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over all sequences, at most."""
    max_seconds: Annotated[float, Field(gt=0.0)] = 1_800.0
    """Longest training time, in seconds; where it binds, the rate has come down by then all the same."""
    batch_users: Annotated[int, Field(ge=1)] = 32
    """Users per step; more are not faster on a CPU, and learn less in the same time."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 3e-3
    """Adam's largest step size: the rate rises to it at first, then falls along a cosine."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of torch while retraining."""


class GateSettings(Section):
    """When a retrained challenger replaces the live champion (invariant I6)."""

    min_events: Annotated[int, Field(ge=1)] = 200
    """Clicks, none of them learnt by either model, on which both are judged."""
    wait_seconds: Annotated[float, Field(ge=0.0)] = 600.0
    """How long the gate waits for so many, in seconds; then the champion stays."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the interval for the difference in NDCG@10; its lower end must lie above -`tolerance`."""
    tolerance: Annotated[float, Field(ge=0.0)] = 0.0
    """How much worse in NDCG@10 the challenger may be at the lower end of the interval."""
    min_slates: Annotated[int, Field(ge=0)] = 200
    """Slates, served after both models were trained, for whose closing the gate waits where clicks come from slates."""
    slate_seconds: Annotated[float, Field(ge=0.0)] = 60.0
    """How long it waits for them once there are clicks enough, in seconds; at most `wait_seconds` in all."""
    min_effective_impressions: Annotated[float, Field(ge=1.0)] = 100.0
    """Effective sample size from which on the slates may reject a challenger that would have earned fewer clicks."""
