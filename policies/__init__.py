"""Decoding policies: middleware around an engine, one file a method."""
