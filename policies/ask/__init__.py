"""Policies that ask the user back."""
