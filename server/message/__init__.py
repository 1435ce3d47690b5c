"""An assistant's message: its text read as content, reasoning and calls of tools."""
