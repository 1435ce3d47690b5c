"""Models under vLLM: the engines, and the logits processor that runs in vLLM's workers."""
