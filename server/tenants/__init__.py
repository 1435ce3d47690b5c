"""Keys that are stored, what each of them may do, what it owns, and what it has spent."""
