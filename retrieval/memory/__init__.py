"""Memories: short facts from conversations, each of one owner, durable, searchable, exportable and erasable."""
