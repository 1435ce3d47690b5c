"""Compress models: which layers bear how much of it is searched for, not guessed."""
