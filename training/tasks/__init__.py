"""Hold tasks whose answers can be checked: questions with a reward function, for RL and for probes."""
