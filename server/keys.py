"""Read API keys from the environment. Imports little, so that a server without keys is refused at once."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field

NAMED = re.compile(r"([A-Za-z0-9_.-]{1,64}):(\S+)")


@dataclass(frozen=True)
class ApiKey:
    """A key and its name, which identifies its holder to policies and stores."""

    name: str
    secret: str = field(repr=False)


def keys_from_environment(variable: str) -> list[ApiKey]:
    """Return the keys in a variable of the environment, separated by commas: `KEY`, or `NAME:KEY`.

    A key without a name is named by its digest.
    """
    return [_key(entry.strip()) for entry in os.environ.get(variable, "").split(",") if entry.strip()]


def _key(entry: str) -> ApiKey:
    if named := NAMED.fullmatch(entry):
        return ApiKey(named[1], named[2])
    return ApiKey(f"key-{hashlib.sha256(entry.encode()).hexdigest()[:12]}", entry)
