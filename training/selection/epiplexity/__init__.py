"""Split the information in data into structure that a model can learn and noise that it cannot (arXiv 2601.03220)."""
