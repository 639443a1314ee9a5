"""`sasrec-stream retrain`: asks for a full retrain and follows it to the gate's verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import typer
from sqlalchemy import Engine

from deploy.cli.signals import stop_on_signals
from deploy.registry.registry import (
    Outcome,
    finish_retrain,
    has_running_retrain,
    now_ms,
    opened_registry,
    request_retrain,
    retrain_by_id,
    take_retrain,
)
from deploy.registry.tables import OPEN, Retrain
from deploy.settings import Settings

FOLLOW_SECONDS = 0.25
TAKEN_WITHIN_SECONDS = 10.0
EXIT_STATUS = {"promoted": 0, "failed": 1, "rejected": 3, "undecided": 4}


def retrain(
    context: typer.Context,
    wait: Annotated[bool, typer.Option(help="Follow it until it is over.")] = True,  # noqa: FBT002 - a flag
    here: Annotated[bool, typer.Option("--here", help="Do it in this process, without a scheduler.")] = False,  # noqa: FBT002 - a flag
    perform: Annotated[int | None, typer.Option(hidden=True, help="The scheduler's own call.")] = None,
) -> None:
    """Train a new model on all sequences, compare it with the live one on the same events, promote it if it is better.

    Exit status: 0 promoted, 3 rejected, 4 undecided (too few events to judge), 1 failed.
    """
    settings: Settings = context.obj
    with opened_registry(settings.registry_url) as engine:
        if perform is not None:
            _perform(settings, engine, perform)
            return
        retrain_id = request_retrain(engine, at_ms=now_ms())
        typer.echo(f"retrain {retrain_id} requested")
        if here:
            take_retrain(engine, retrain_id, at_ms=now_ms())
            _perform(settings, engine, retrain_id)
        if here or wait:
            raise typer.Exit(EXIT_STATUS[_follow(engine, retrain_id)])


def _perform(settings: Settings, engine: Engine, retrain_id: int) -> None:
    from deploy.registry.retraining import perform_retrain  # noqa: PLC0415 - who only asks waits for no torch

    with stop_on_signals() as stop:
        perform_retrain(settings, engine, retrain_id, stop=stop, tell=typer.echo)


def _follow(engine: Engine, retrain_id: int) -> str:
    """Tells every change, and returns how it ended."""
    for change in _changes(engine, retrain_id):
        typer.echo(words(change))
    return change.status


def _changes(engine: Engine, retrain_id: int) -> Iterator[Retrain]:
    """The retrain each time its status is another, the last time when it is over.

    Raises:
        ValueError: nobody takes it.
    """
    asked_at = time.monotonic()
    shown = ""
    while True:
        retrain = retrain_by_id(engine, retrain_id)
        if retrain.status != shown:
            shown = retrain.status
            yield retrain
        if retrain.status not in OPEN:
            return
        if retrain.status == "requested" and time.monotonic() > asked_at + TAKEN_WITHIN_SECONDS:
            _refuse_without_scheduler(engine, retrain_id)
        time.sleep(FOLLOW_SECONDS)


def _refuse_without_scheduler(engine: Engine, retrain_id: int) -> None:
    """One that waits for another retrain has a scheduler; else the request is withdrawn, so that none comes later."""
    if has_running_retrain(engine) or take_retrain(engine, retrain_id, at_ms=now_ms()) is None:
        return
    finish_retrain(engine, retrain_id, Outcome(status="failed", reason="no scheduler took it"), at_ms=now_ms())
    raise ValueError(
        "no scheduler took the retrain; start one with `sasrec-stream run scheduler` (`sasrec-stream up` has one), "
        "or retrain in this process with --here"
    )


def words(retrain: Retrain) -> str:
    """One line for people."""
    said = f"retrain {retrain.id}: {retrain.status}"
    if retrain.ndcg_challenger is not None and retrain.ndcg_champion is not None:
        said += (
            f" on {retrain.judged_events} events, NDCG@10 {retrain.ndcg_challenger:.4f} "
            f"against {retrain.ndcg_champion:.4f} of the live model"
        )
    return f"{said} ({retrain.reason})" if retrain.reason else said
