"""`sasrec-stream accounts`: the ledger of everything that came in."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from deploy.settings import Settings
from stream.accounts import Account, read_accounts

UNBALANCED = 1
COLUMNS = 120
"""Of text that every number fits into; a narrower terminal wraps lines rather than numbers."""


def accounts(context: typer.Context) -> None:
    """Show how every message ended, per topic partition: what came in is the sum of what follows.

    `waiting` is what the stream worker has not finished yet; exit status 1 if anything was counted twice.
    """
    settings: Settings = context.obj
    ledger = read_accounts(settings.kafka)
    Console(width=max(Console().width, COLUMNS)).print(as_table(ledger))
    if any(account.waiting < 0 for account in ledger):
        raise typer.Exit(UNBALANCED)


def as_table(ledger: list[Account]) -> Table:
    """One line per topic and partition, one column per way to end."""
    outcomes = list(dict.fromkeys(outcome for account in ledger for outcome in account.outcomes))
    table = Table("topic", "partition", "came in", *outcomes, "waiting")
    for account in ledger:
        ended = [f"{account.outcomes[outcome]:,}" if outcome in account.outcomes else "" for outcome in outcomes]
        table.add_row(account.topic, str(account.partition), f"{account.came_in:,}", *ended, f"{account.waiting:,}")
    return table
