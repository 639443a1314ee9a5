"""`sasrec-stream why REQUEST_ID`: what a slate was drawn from, and what the model looked at."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
import typer

from deploy.observe.titles import read_titles
from deploy.observe.why import Explanation, explain
from deploy.settings import Settings
from stream.admin import require_topics
from stream.events import Recommendation, RecommendedItem

SHOWN_CLICKS = 10
TITLE_WIDTH = 40


def why(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(help="As the slate carries it; `watch --json` shows them.")],
    *,
    user: Annotated[str | None, typer.Option(help="Whose it is: only that user's partition is searched.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one line of JSON.")] = False,
) -> None:
    """Say why a slate is as it is: model, policy, chances, the clicks it knew and the attention over them."""
    settings: Settings = context.obj
    require_topics(settings.kafka)
    explanation = explain(settings.kafka, settings.checkpoints, request_id, user_id=user)
    if as_json:
        typer.echo(msgspec.json.encode(explanation).decode())
        return
    for line in readable(explanation, read_titles(settings.kafka)):
        typer.echo(line)


def readable(explanation: Explanation, titles: Mapping[str, str]) -> Iterator[str]:
    """For a terminal."""
    slate = explanation.slate
    yield f"request {slate.request_id} of {slate.user_id}, {_at(slate.generated_at_ms)}"
    yield from _origin(slate)
    yield ""
    yield from _clicks(explanation, titles)
    yield ""
    yield f"{'':>4}  {'item':<{TITLE_WIDTH}}  {'source':<8} {'score':>8} {'again':>8} {'chance':>8}" + "".join(
        f" {rival.policy[:12]:>12}" for rival in slate.rivals
    )
    for item in slate.items:
        yield _item(item, explanation.again.scores.get(item.item_id), titles)
    if slate.missing:
        yield f"      {slate.missing} fewer than asked for: no more could be served"
    yield ""
    yield explanation.again.what


def _origin(slate: Recommendation) -> Iterator[str]:
    trained = "" if slate.trained_through_ms is None else f", trained through clicks of {_at(slate.trained_through_ms)}"
    yield f"  model      {slate.model_version or 'none'}{trained}"
    yield f"  policy     {slate.policy}{_policy(slate)}"
    if slate.cause is not None:
        yield f"  because    {slate.cause.topic} {slate.cause.partition}/{slate.cause.offset} came in"
    if slate.sequence_position is not None:
        yield f"  sequence   at click {slate.sequence_position} of this user, {slate.history_length} items known"
    if slate.is_fresh is not None:
        yield f"  freshness  the click that was waited for {'is in' if slate.is_fresh else 'did not come in time'}"


def _policy(slate: Recommendation) -> str:
    parts = [
        (slate.temperature, "temperature {:g}"),
        (slate.exploration_slots, "{} slots explored"),
        (slate.candidate_count, "{} candidates"),
        (slate.eligible_count, "{} items eligible"),
    ]
    told = [text.format(value) for value, text in parts if value is not None]
    if slate.router_probability < 1.0:
        told.append(f"got by {slate.router_probability:.1%} of users")
    return f" ({', '.join(told)})" if told else ""


def _clicks(explanation: Explanation, titles: Mapping[str, str]) -> Iterator[str]:
    clicks = explanation.clicks
    if not clicks:
        yield "  no clicks of this user are known"
        return
    yield f"{'':>4}  {'the last clicks it knew, newest first':<{TITLE_WIDTH}}  {'when':<19}  attention"
    for nth, click in enumerate(reversed(clicks[-SHOWN_CLICKS:]), 1):
        title = titles.get(click.item_id, click.item_id)
        attention = "" if click.attention is None else f"{click.attention:>8.1%}"
        yield f"{-nth:>4}  {title:<{TITLE_WIDTH}.{TITLE_WIDTH}}  {_at(click.timestamp_ms):<19}  {attention}"
    older = len(clicks) - SHOWN_CLICKS
    if older > 0:
        rest = sum(click.attention or 0.0 for click in clicks[:-SHOWN_CLICKS])
        yield f"      and {older} older ones: {rest:.1%}"
    if explanation.forgotten:
        yield f"      and {explanation.forgotten} that are not kept any more"


def _item(item: RecommendedItem, again: float | None, titles: Mapping[str, str]) -> str:
    title = titles.get(item.item_id, item.item_id)
    numbers = f"{_number(item.score)} {_number(again)} {_share(item.propensity)}"
    rivals = "".join(f" {chance:>12.2%}" for chance in item.rival_propensities)
    return f"{item.position + 1:>4}  {title:<{TITLE_WIDTH}.{TITLE_WIDTH}}  {item.source:<8} {numbers}{rivals}"


def _number(value: float | None) -> str:
    return f"{'' if value is None else format(value, '.3f'):>8}"


def _share(value: float | None) -> str:
    return f"{'' if value is None else format(value, '.2%'):>8}"


def _at(timestamp_ms: int) -> str:
    return datetime.datetime.fromtimestamp(timestamp_ms / 1_000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
