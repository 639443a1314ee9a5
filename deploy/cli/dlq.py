"""`sasrec-stream dlq`: what could not be read, why, and back to its topic once that is mended."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated

import typer
from kafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from deploy.cli.texts import cell, printable
from deploy.settings import Settings
from stream import clients, letters
from stream.admin import require_topics
from stream.letters import Letter
from stream.topics import ITEMS

SHOWN_BYTES = 2_000
COLUMNS = 110
"""A table is no narrower where the output is no terminal."""

app = typer.Typer(help="List, show and replay dead letters.", no_args_is_help=True)

Topic = Annotated[str, typer.Argument(help=f"{', '.join(letters.NAMES)}")]
Reason = Annotated[str | None, typer.Option(help="Only letters of this reason.")]


@app.command("list")
def list_letters(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(help="Its newest letters; counts of all topics if absent.")] = None,
    *,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest letters shown.")] = 20,
) -> None:
    """Count the dead letters by topic and reason, or list those of TOPIC."""
    settings: Settings = context.obj
    require_topics(settings.kafka)
    if topic is None:
        _print(_counts({name: letters.read_letters(settings.kafka, name) for name in letters.NAMES}))
        return
    found = [one for one in letters.read_letters(settings.kafka, topic) if reason in {None, one.reason}]
    _print(_listed(sorted(found, key=lambda one: one.at_ms)[-limit:]))


@app.command()
def show(
    context: typer.Context,
    topic: Topic,
    position: Annotated[str, typer.Argument(help="PARTITION:OFFSET where it stood, as `list` shows it.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Only the value, byte by byte.")] = False,
) -> None:
    """Print one dead letter: why, whence, headers and value."""
    settings: Settings = context.obj
    for letter in letters.read_letters(settings.kafka, topic):
        if letter.position == position:
            _show(letter, raw=raw)
            return
    raise ValueError(f"{topic} has no dead letter from {position}; `sasrec-stream dlq list {topic}` shows them")


@app.command()
def replay(  # noqa: PLR0913 - the options of a command
    context: typer.Context,
    topic: Topic,
    *,
    reason: Reason = None,
    position: Annotated[
        list[str] | None, typer.Option(help="Only this one, PARTITION:OFFSET; may be given several times.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most letters sent back.")] = 1_000_000,
    max_replays: Annotated[int, typer.Option(min=1, help="Leave letters that failed again so often.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
) -> None:
    """Send dead letters back to where they came from: raw bytes, key, headers, partition.

    Each is sent once, whatever becomes of it. One that fails again is a new dead letter that says how often it was sent
    back, and is left alone from then on.
    """
    settings: Settings = context.obj
    require_topics(settings.kafka)
    sources = letters.sources_of(settings.kafka, topic, (source.topic for source in settings.mapping.sources))
    wanted = [
        letter
        for letter in letters.read_letters(settings.kafka, topic)
        if reason in {None, letter.reason} and (not position or letter.position in position)
    ]
    refused = {one.source: letters.why_not(one, topic, sources=sources, max_replays=max_replays) for one in wanted}
    if topic == ITEMS:
        stale = letters.superseded(settings.kafka, wanted)
        refused |= dict.fromkeys(stale, "a newer record of this item stands on the topic")
    going = [letter for letter in wanted if refused[letter.source] is None][:limit]
    for why, count in Counter(why for why in refused.values() if why is not None).most_common():
        typer.echo(f"{count} left: {printable(why)}")
    if dry_run:
        typer.echo(f"{len(going)} would be sent back")
        return
    typer.echo(f"{_send(settings, topic, going)} sent back")


def _send(settings: Settings, topic: str, going: list[Letter]) -> int:
    done = 0
    try:
        with clients.producer(settings.kafka) as producer:
            for done in letters.send_back(settings.kafka, producer, topic, going):  # noqa: B007 - the last one counts
                pass
    except KafkaError as error:
        raise ValueError(
            f"{done} sent back, then Kafka did not take one: {error}; run it again for the rest"
        ) from error
    return done


def _counts(found: dict[str, list[Letter]]) -> Table:
    table = Table("topic", "reason", "letters", "sent back", "failed again")
    for name, ones in found.items():
        for reason in sorted({one.reason for one in ones}):
            same = [one for one in ones if one.reason == reason]
            sent = sum(one.replayed_as is not None for one in same)
            again = sum(one.replays > 0 for one in same)
            table.add_row(name, cell(reason), f"{len(same):,}", f"{sent:,}", f"{again:,}")
    return table


def _listed(found: list[Letter]) -> Table:
    table = Table("position", "when (UTC)", "reason", "message", "bytes", "replays")
    for one in found:
        at = datetime.fromtimestamp(one.at_ms / 1_000, UTC).strftime("%m-%d %H:%M:%S")
        size = f"{one.cut_from or len(one.value or b''):,}"
        sent = f"{one.replays} before" if one.replayed_as is None else f"sent back as {one.replayed_as}"
        table.add_row(one.position, at, cell(one.reason), cell(one.message), size, cell(sent))
    return table


def _show(letter: Letter, *, raw: bool) -> None:
    value = letter.value or b""
    if raw:
        sys.stdout.buffer.write(value)
        return
    typer.echo(f"{printable(letter.source.topic)}, partition {letter.source.partition}, offset {letter.source.offset}")
    typer.echo(printable(f"{letter.reason}: {letter.message}"))
    sent = "" if letter.replayed_as is None else f", sent back as {printable(letter.replayed_as)}"
    typer.echo(f"replayed {letter.replays} times before{sent}")
    typer.echo(f"key: {_text(letter.key)}")
    for name, content in letter.headers:
        typer.echo(f"header {printable(name)}: {_text(content)}")
    typer.echo(f"value, {letter.cut_from or len(value):,} bytes: {_text(letter.value)}")


def _text(raw: bytes | None) -> str:
    """As text where it is some, so that no control character reaches a terminal."""
    if raw is None:
        return "null"
    shown = raw[:SHOWN_BYTES]
    return printable(shown.decode(errors="backslashreplace")) + (
        f"... ({len(raw) - len(shown):,} bytes more)" if len(raw) > len(shown) else ""
    )


def _print(table: Table) -> None:
    Console(width=max(Console().width, COLUMNS)).print(table)
