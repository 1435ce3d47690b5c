"""Facts that vLLM knows and its logits-processor interfaces do not pass on, read from the call stack.

The names looked for are those of vLLM 0.32. Where they are not found, the feature that needs them is refused or left
out; nothing is guessed.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch

from waver.engines.vllm.state import HiddenStates


def input_processor() -> Any:
    """Find vLLM's input processor that is checking a request, or None: the hook gets the request alone, and what can be
    asked depends on how the server was started."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if hasattr(found, "speculative_config") and hasattr(found, "get_tokenizer"):
            return found
        frame = frame.f_back
    return None


def request_id() -> str | None:
    """Find the id of the request that Model Runner V2 is adding. Call it from a processor's `add_request`, which gets a
    slot that another request may have had before, and a copy of the parameters, which several choices share."""
    frame = sys._getframe(2).f_back
    name = None if frame is None else frame.f_locals.get("req_id")
    return sys.intern(str(name)) if name is not None else None


def hidden_states() -> HiddenStates | None:
    """Find the hidden states of a step. Call it while a processor is applied: vLLM hands on the logits alone, and both
    of its runners hold the states by these names."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        here = frame.f_locals
        if isinstance(sampled := here.get("sample_hidden_states"), torch.Tensor):
            offsets = getattr(here.get("input_batch"), "query_start_loc_np", None)  # V2
            if offsets is None:
                offsets = getattr(getattr(here.get("self"), "query_start_loc", None), "np", None)
            every = here.get("hidden_states")
            return HiddenStates(sampled, every if isinstance(every, torch.Tensor) else None, offsets)
        frame = frame.f_back
    return None
