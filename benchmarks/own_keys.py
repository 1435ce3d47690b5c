"""Make keys of a server that a benchmark starts, by the command line as an operator does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def add_key(config: Path, name: str, *options: str) -> str:
    """Add a key to the database of a configuration, `waver keys add NAME OPTIONS`; return it."""
    command = [sys.executable, "-m", "waver", "keys", "add", name, *options, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip()
