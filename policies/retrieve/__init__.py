"""Policies that look passages up in a collection, the gates that decide when, and what serves them."""
