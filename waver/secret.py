"""Read a secret from an environment variable, or from a file such as an orchestrator mounts."""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 2**20


def read_secret(variable: str | None, file: str | None) -> str | None:
    """Return a secret without the blanks around it: a file's content where one is named, else the variable's value;
    None where neither holds one.

    Raises:
        ValueError: the file cannot be read, or is empty; the message names it and not its content.
    """
    if file is None:
        return os.environ.get(variable or "", "").strip() or None
    try:
        with Path(file).expanduser().open(encoding="utf-8") as opened:
            found = opened.read(MOST_BYTES).strip()
    except OSError as error:
        raise ValueError(f"the secret in {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the secret in {file} cannot be read: it is not UTF-8.") from error
    if not found:
        raise ValueError(f"the secret in {file} is empty.")
    return found
