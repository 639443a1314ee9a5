"""Reads the accounts of the stream (I2): how many messages there are, and the outcome of each."""

from __future__ import annotations

from collections import Counter

from deploy.local.summary import Ledger
from deploy.observe.offsets import Offsets
from deploy.observe.reading import read_all
from stream.dead_letters import source_position
from stream.sequences import decode_state
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, IMPRESSIONS, SEQUENCES


def read_ledger(kafka: KafkaSettings, offsets: Offsets) -> Ledger:
    """Complete where the stream worker has nothing left to do; it reads all of `sequences`."""
    newest = {record.key: record.value for record in read_all(kafka, SEQUENCES)}
    counted: Counter[str] = Counter()
    for state in (decode_state(value) for value in newest.values() if value is not None):
        accounts = state.accounts
        counted.update(
            applied=state.clicks_applied,
            duplicates=accounts.clicks_duplicate,
            late=accounts.clicks_late,
            impressions=accounts.impressions,
        )
    dead = {name: _dead_letters(kafka, name) for name in (CLICKS, IMPRESSIONS)}
    clicks = counted["applied"] + counted["duplicates"] + counted["late"]
    return Ledger(
        written=offsets.totals([CLICKS, IMPRESSIONS]),
        accounted={CLICKS: clicks + dead[CLICKS], IMPRESSIONS: counted["impressions"] + dead[IMPRESSIONS]},
        applied=counted["applied"],
        duplicates=counted["duplicates"],
        late=counted["late"],
        dead_lettered=sum(dead.values()),
    )


def _dead_letters(kafka: KafkaSettings, name: str) -> int:
    """Messages of that topic among the dead letters; one that was sent there twice after a crash is one message."""
    return len({source_position(record.headers) for record in read_all(kafka, name + DEAD_LETTER_SUFFIX)})
