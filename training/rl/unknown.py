"""Stand in for what a trainer cannot say of its rows, so that reading it fails instead of yielding a made-up value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch

Readable = Literal["correct", "entropy", "truncated", "tokens", "step", "step_id"]
READABLE: tuple[Readable, ...] = get_args(Readable)
"""Fields of a batch that not every trainer fills; a method declares which of them its hooks read."""


class Unknown(torch.Tensor):
    """A tensor without values. Selecting rows of it is allowed and changes nothing; all else raises a ValueError."""

    reason: str

    @staticmethod
    def because(reason: str) -> Any:
        """Return one whose error is `reason`, for a field of any type."""
        made = torch.empty(0).as_subclass(Unknown)
        made.reason = reason
        return made

    def __getitem__(self, _: Any) -> Unknown:
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Unknown({self.reason!r})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = next(_unknown((*args, *(kwargs or {}).values())), None)
        raise ValueError(found.reason if found is not None else "an unknown value was read")


def _unknown(values: Iterable[Any]) -> Iterator[Unknown]:
    for value in values:
        if isinstance(value, Unknown):
            yield value
        elif isinstance(value, list | tuple):
            yield from _unknown(value)


def is_known(value: Any) -> bool:
    """Tell whether a field of a batch has values."""
    return not isinstance(value, Unknown)
