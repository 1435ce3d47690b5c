"""Measure and reward the same answer to every wording of a question: Con-RAG (arXiv 2510.04392)."""
