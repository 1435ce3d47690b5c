"""Train models with the same entropy core: the bundled pair, probes, and reinforcement learning."""
