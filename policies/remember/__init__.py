"""Policies that remember: what conversations said, for those who said it."""
