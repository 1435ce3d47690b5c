"""Models under vLLM: the engine on this side, and a logits processor on the other, where the logits are."""
