"""Pictures of a prompt, and what is left out of them, as plain data that `Sampling` carries to an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `height` rows of `width` pixels of three bytes (red, green, blue).

    `digest` tells pictures apart. `tokens` are those that stand for it in the prompt, as the model's processor makes
    them.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False, compare=False)
    digest: str
    tokens: tuple[int, ...] = field(default=(), repr=False)
    hold: object = field(default=None, repr=False, compare=False)
    """Whatever lives as long as the picture, in all of its copies."""
    url: str = field(default="", repr=False, compare=False)
    """The data URL that it was sent as."""


@dataclass(frozen=True)
class Conversation:
    """A conversation with pictures, for an engine behind another server, which alone knows the tokens of its model's
    pictures.

    `messages` and `variables` (of the chat template) are OpenAI's, with the pictures as data URLs. `limited`: somebody
    said how many tokens the answer may have.
    """

    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    variables: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = True
    continues: bool = False
    limited: bool = True


@dataclass(frozen=True)
class Pruning:
    """The place and the amount: from decoder layer `layer` (at least 1) on, so that a share `keep` of the image tokens
    remains on average over all layers. `normalise` as in `waver.entropy.matrix`; without it, as in the released code.

    `by`: what chooses the tokens that stay. `entropy` is the method; it is compared with `attention`, which the
    prompt's last token pays them, and with `random`.
    """

    layer: int
    keep: float
    normalise: bool = True
    by: str = "entropy"


@dataclass(frozen=True)
class PrunedPrompt:
    """Count the image tokens of a prompt `before` a layer and `after`, and the seconds that this saved, estimated from
    the time that the layers in front of it took for all tokens."""

    layer: int
    before: int
    after: int
    seconds_saved: float
