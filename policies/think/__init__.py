"""Policies that choose how the model thinks before it answers, and how its answer is brought to an end."""
