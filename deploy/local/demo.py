"""The demo's own defaults: in a minute of a small world the trainer takes smaller and more steps than by default."""

from __future__ import annotations

from deploy.settings import Settings, environment_variable

DEFAULTS = {
    "trainer.learning_rate": "0.003",
    "trainer.min_batch": "8",
    "trainer.replay_share": "5",
    "trainer.metric_window": "1000",
}
"""By dotted key; in the offline world of 2,400 clicks they take HR@10 over the last 1,000 from 0.22 to 0.57."""


def demo_environment(settings: Settings) -> dict[str, str]:
    """Variables that give the processes these defaults, but for what somebody has set."""
    return {
        environment_variable(key): value
        for key, value in DEFAULTS.items()
        if key.partition(".")[2] not in getattr(settings, key.partition(".")[0]).model_fields_set
    }
