"""What anybody may have sent, as a terminal can bear it."""

from __future__ import annotations

from rich.markup import escape


def printable(text: str) -> str:
    """Without control characters: they could move the cursor, change colours or worse."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def cell(text: str) -> str:
    """The same for a table, where square brackets would be markup."""
    return escape(printable(text))
