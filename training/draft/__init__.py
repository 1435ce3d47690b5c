"""Train draft models for speculative decoding by how much of what they draft is accepted (Bebop, arXiv 2606.12370)."""
