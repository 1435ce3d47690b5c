"""Policies that guard: what may be asked, and what may be answered."""
