"""Learn in simulation which query to make next under a small budget, whatever the difficulty (arXiv 2010.15382)."""
