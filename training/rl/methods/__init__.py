"""One file for each method. How to write one: docs/training-methods.md."""
