"""Tune models: choose which weights may change, and train them on texts."""
