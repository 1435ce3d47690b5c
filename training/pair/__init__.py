"""Train the bundled pair: the small world, its tokenizer, the training data and the training loop."""
