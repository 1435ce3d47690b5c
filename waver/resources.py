"""Locate the files that come with Waver: the bundled models and the default configuration."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PACKAGE = Path(str(files("waver")))
"""The folder of the import package; its parent is what has to be on `sys.path`."""
MODELS = PACKAGE / "models"
"""The bundled pair: `small` and `large`."""
STARTER_GUARD = MODELS / "guard"
"""A small guard for `safeharbor`."""
DEFAULT_CONFIG = PACKAGE / "configs" / "bundled.yaml"
"""Configuration of `waver serve` if none is given."""
