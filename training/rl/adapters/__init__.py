"""Adapt recipes to trainers that people already use. Nothing of a trainer is imported before its adapter is."""
