"""Train probes for DiffAdapt (arXiv 2510.19669): from a file of questions to a network that predicts their
difficulty."""
