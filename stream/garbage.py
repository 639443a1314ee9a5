"""How often a process looks for cycles of objects that nobody needs any more.

Records, examples and slates hold none; looking for them anew whenever 700 objects were made, as Python does, takes a
fifteenth of the time of who handles records, and whoever waits for an answer waits meanwhile.
"""

from __future__ import annotations

import gc

MADE_OBJECTS = 50_000
"""Objects made until cycles are looked for."""


def collect_rarely() -> None:
    """From now on, in this process."""
    gc.set_threshold(MADE_OBJECTS)
