"""Policies that draw several answers and choose among them."""
