"""Choose the examples of a pool that are nearest to a target task: a representation and a selector, each on its own
(arXiv 2602.14696)."""
