"""Read API keys from the environment or a file. Imports little, so that a server without keys is refused at once."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from waver.secret import read_secret
from waver.server.settings import ServerConfig

NAMED = re.compile(r"([A-Za-z0-9_.-]{1,64}):(\S+)")


@dataclass(frozen=True)
class ApiKey:
    """A key and its name, which identifies its holder to policies and stores."""

    name: str
    secret: str = field(repr=False)


def configured_keys(server: ServerConfig) -> list[ApiKey]:
    """Return the keys of a configuration, `KEY` or `NAME:KEY`, separated by commas or line breaks: those of the file
    that it names, else those of the variable. Lines of a file that begin with `#` are comments.

    A key without a name is named by its digest.

    Raises:
        ValueError: the file cannot be read, or holds no key.
    """
    given = read_secret(server.api_keys_env, server.api_keys_file) or ""
    lines = [line for line in given.splitlines() if not line.lstrip().startswith("#")]
    keys = [_key(entry.strip()) for line in lines for entry in line.split(",") if entry.strip()]
    if server.api_keys_file is not None and not keys:
        raise ValueError(f"there is no key in {server.api_keys_file}.")
    return keys


def _key(entry: str) -> ApiKey:
    if named := NAMED.fullmatch(entry):
        return ApiKey(named[1], named[2])
    return ApiKey(f"key-{hashlib.sha256(entry.encode()).hexdigest()[:12]}", entry)
