"""Training on the same entropy core: the factory of the bundled models, later RL and tuning methods."""
