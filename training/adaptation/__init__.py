"""Adapt classifiers while they are used: to a stream without labels, or to new classes from a few examples."""
