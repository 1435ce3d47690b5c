"""Documents on demand: documents become chunks, chunks vectors, and a question finds its passages among them."""
