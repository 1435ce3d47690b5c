"""Train judges for Entropy Judger (arXiv 2602.04234): from runs of a live server to the probability that a run is
right."""
