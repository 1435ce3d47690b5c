"""Tool-Light (arXiv 2509.23285): teach a model to call tools no more than it must, from chains that branch where it is
uncertain."""
