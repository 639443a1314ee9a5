"""Settings of the network and of the policies that turn scores into slates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.router import Router

MAX_ARMS = 32


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


class ArmSettings(Section):
    """One recommender among several; what it leaves out is as in `policy`."""

    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the users, and so of the requests; all shares add up to 1."""
    ranker: Literal["sasrec", "popular", "transitions", "elsewhere"] = "sasrec"
    """What scores the items: the network, recent popularity, what followed the user's last item, or another system
    that answers these users by itself.
    """
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """T of this arm."""
    exploration_slots: Annotated[int, Field(ge=0, le=1_000)] | None = None
    """m of this arm."""
    checkpoint: str | None = None
    """A checkpoint folder, or its URL, that this arm serves from, whatever is announced; only for `sasrec`."""


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
    recommend_again: bool = False
    """Whether what the user has had may be served again."""
    max_per_category: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Most items of one category (by `items`) in a slate, more than `exploration_slots`; applied before drawing."""
    arms: dict[str, ArmSettings] = {}
    """Several recommenders on one surface, by their policy names; every user stays with one. Empty: SASRec alone."""
    split_salt: Annotated[str, Field(max_length=64)] = ""
    """Deals the users anew among the arms: another text for another experiment."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> PolicySettings:
        if len(self.arms) > MAX_ARMS:
            raise ValueError(f"{len(self.arms)} arms; {MAX_ARMS} fit on one surface")
        if self.arms:
            Router({name: arm.share for name, arm in self.arms.items()})
        if any(arm.checkpoint is not None and arm.ranker != "sasrec" for arm in self.arms.values()):
            raise ValueError("only an arm whose ranker is sasrec has a checkpoint; take the other's away")
        return self

    @model_validator(mode="after")
    def _cap_leaves_room(self) -> PolicySettings:
        explored = [self.exploration_slots, *(arm.exploration_slots or 0 for arm in self.arms.values())]
        if self.max_per_category is not None and self.max_per_category <= max(explored):
            raise ValueError(
                f"max_per_category {self.max_per_category} leaves nothing beside {max(explored)} exploration slots, "
                "which may all fall into one category; raise it or explore less"
            )
        return self
