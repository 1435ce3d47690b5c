"""The finished answer and how it ended, as given to a policy's `after`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["stop", "stop_string", "length", "content_filter", "client_gone", "failed", "refused"]
"""`stop`: the model or a policy ended it. `stop_string`: one of the request's stop strings did. `content_filter`: a
policy withheld it. `client_gone`: nobody waits for it any more. `failed`: an engine or a policy raised, or the time of
the request ran out. `refused`: the request was refused before its first token."""


@dataclass(frozen=True)
class Answer:
    """An answer that has ended: what the client was given of it, its token ids, and why it ended."""

    text: str
    token_ids: tuple[int, ...]
    ending: Ending
