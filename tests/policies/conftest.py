"""Fixtures that tests of policies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from waver.engines.tokens import TokenText


@pytest.fixture(scope="session")
def tokens() -> TokenText:
    """The bundled pair's tokenizer."""
    return TokenText.load(str(Path(__file__).parents[2] / "models" / "small"))
