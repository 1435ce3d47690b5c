"""Skip the tests that need vLLM, with a reason, where it has no wheel; elsewhere they must run."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import pytest

HAS_WHEEL = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None and not HAS_WHEEL,
    reason="there is no vLLM for the CPU of this platform",
)
