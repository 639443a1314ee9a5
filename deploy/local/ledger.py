"""Reads the accounts of what the audience produces, for the summary."""

from __future__ import annotations

from collections import Counter

from deploy.local.summary import Ledger
from stream.accounts import read_accounts
from stream.settings import KafkaSettings
from stream.topics import CLICKS, IMPRESSIONS


def read_ledger(kafka: KafkaSettings) -> Ledger:
    """Complete where the stream worker has nothing left to do; it reads all of `sequences`."""
    written: Counter[str] = Counter()
    accounted: Counter[str] = Counter()
    clicks: Counter[str] = Counter()
    dead = 0
    for account in read_accounts(kafka):
        if account.topic not in (CLICKS, IMPRESSIONS):
            continue
        written[account.topic] += account.came_in
        accounted[account.topic] += sum(account.outcomes.values())
        dead += account.outcomes["dead"]
        if account.topic == CLICKS:
            clicks.update(account.outcomes)
    return Ledger(
        written=dict(written),
        accounted=dict(accounted),
        applied=clicks["applied"],
        duplicates=clicks["duplicate"],
        late=clicks["late"],
        dead_lettered=dead,
    )
