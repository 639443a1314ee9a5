"""Where people watch: a live table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from deploy.observe.snapshot import Snapshot
from deploy.observe.table import Moment, line, table

LINE_SECONDS = 5.0
TABLE_SECONDS = 0.5


class Screen:
    """Writes to standard output; `tell` puts a message above the table, `show` draws."""

    def __init__(self, *, title: str) -> None:
        self._console = Console(soft_wrap=True, highlight=False)
        self._title = title
        self._began_seconds = time.monotonic()
        self._drawn_seconds = -LINE_SECONDS
        self._waited_for = ""
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def ran_seconds(self) -> float:
        """Since the screen was made."""
        return time.monotonic() - self._began_seconds

    def tell(self, message: str) -> None:
        """Something that happened."""
        self._console.print(message, markup=False)

    def wait(self, what: str) -> None:
        """Says what is being waited for, while there are no figures to show."""
        if self._console.is_terminal:
            self._live.update(Text(what), refresh=True)
        elif what != self._waited_for:
            self.tell(what)
        self._waited_for = what

    def show(self, snapshot: Snapshot) -> None:
        """Draws the newest snapshot."""
        now = time.monotonic()
        if now - self._drawn_seconds < (TABLE_SECONDS if self._console.is_terminal else LINE_SECONDS):
            return
        self._drawn_seconds = now
        moment = Moment(ran_seconds=self.ran_seconds, now_ms=time.time_ns() // 1_000_000, now_seconds=now)
        if self._console.is_terminal:
            self._live.update(table(snapshot, moment, title=self._title, height=self._console.height), refresh=True)
        else:
            self.tell(line(snapshot, moment))
