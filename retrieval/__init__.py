"""Store and search documents: split them into chunks, embed the chunks, and find the passages that match a question."""
