"""Settings of the network and of the policy that turns scores into slates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of the settings: immutable, unknown keys refused, a docstring with its unit under every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSettings(Section):
    """The shape of SASRec. It is part of every checkpoint; changing it takes a full retrain."""

    max_length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Positions: how many of the user's last items the network looks at."""
    units: Annotated[int, Field(ge=1, le=4_096)] = 64
    """Width of embeddings and hidden layers; a multiple of `heads`."""
    blocks: Annotated[int, Field(ge=0, le=64)] = 2
    """Self-attention blocks."""
    heads: Annotated[int, Field(ge=1, le=64)] = 1
    """Attention heads per block."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Chance that a unit is dropped while training."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before (pre) or after (post) each sub-layer."""

    @model_validator(mode="after")
    def _heads_divide_units(self) -> ModelSettings:
        if self.units % self.heads:
            raise ValueError(f"units {self.units} is not a multiple of heads {self.heads}; change one of them")
        return self


class PolicySettings(Section):
    """How a slate is drawn from scores; docs/propensities.md section 3. All propensities follow from these."""

    slate_size: Annotated[int, Field(ge=1, le=1_000)] = 10
    """K: items per slate where a request does not say."""
    exploration_slots: Annotated[int, Field(ge=0, le=1_000)] = 1
    """m: slots of the slate filled uniformly from everything eligible."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """T of the softmax over scores from which the other slots are drawn; 0 is greedy."""
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 200
    """n: the best-scored items among which the softmax draws."""
