"""Tell which tokens of an answer are thoughts, that is, stand in a think block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from waver.engines.tokens import TokenText

OPENS, CLOSES = "<think>", "</think>"


class Thoughts:
    """Follows an answer token by token. The tags count as thoughts.

    Tags are the model's own tokens where it has them. Otherwise they are read from the text: a block opens in the
    prompt, or with the answer; tokens that may still become the opening tag count as thoughts.

    Args:
        before: ids in front of the answer, which may have opened a block.
    """

    def __init__(self, tokens: TokenText, before: Sequence[int]) -> None:
        self._tokens = tokens
        self._inside = tokens.in_think(before)
        self._over = False
        self._text = ""

    def push(self, token: int) -> bool:
        """Take in a token, and return whether it is a thought."""
        tags = self._tokens.think
        if tags is not None:
            if token not in tags:
                return self._inside
            self._inside = token == tags[0]
            return True
        return not self._over and self._spelt(self._tokens.token_bytes(token).decode(errors="replace"))

    def _spelt(self, text: str) -> bool:
        self._text += text
        if not self._inside:
            bare = self._text.lstrip()
            self._inside = bare.startswith(OPENS)
            self._over = not OPENS.startswith(bare[: len(OPENS)])
            if not self._inside:
                return bool(bare) and not self._over
        if CLOSES in self._text:
            self._inside, self._over = False, True
        self._text = self._text[-len(CLOSES) :]  # a tag may be spelt in several tokens, and thoughts are long
        return True


class TraceEntropy:
    """The mean entropy of an answer's thoughts and of what follows them, apart, for a report."""

    def __init__(self, tokens: TokenText, before: Sequence[int]) -> None:
        self._thoughts = Thoughts(tokens, before)
        self.record: dict[str, dict[str, Any]] = {}
        """`thinking` and `answer`, as far as there are any: `mean` (nats) and `tokens`."""

    def add(self, token: int, entropy: float) -> None:
        """Take in a token of the answer with its entropy (nats)."""
        part = self.record.setdefault(
            "thinking" if self._thoughts.push(token) else "answer", {"mean": 0.0, "tokens": 0}
        )
        part["tokens"] += 1
        part["mean"] += (entropy - part["mean"]) / part["tokens"]
