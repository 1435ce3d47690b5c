from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Running


@pytest.fixture
def base_url(running: Running) -> str:
    return running.v1
