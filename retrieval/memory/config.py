"""The section `memory` of the configuration: how much is kept for each owner, and for how long."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MemoryConfig(BaseModel):
    """Limits of memories. Times in seconds where nothing else is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_memories: int = Field(default=10_000, ge=1, description="of an owner; beyond them the oldest are forgotten")
    max_episodes: int = Field(default=2_000, ge=1, description="of an owner; beyond them the oldest are forgotten")
    max_facts: int = Field(default=10_000, ge=1, description="of an owner, those that were replaced included")
    max_turns: int = Field(default=2_000, ge=20, description="turns of an owner that wait to be made memories of")
    max_days: float | None = Field(default=None, gt=0, description="age at which memories are forgotten")
    lock_seconds: float = Field(default=30.0, gt=0, description="how long a writer waits for another one")
