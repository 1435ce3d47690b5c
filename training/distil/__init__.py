"""Learn from an expert's next-token distributions on the student's own answers: DistIL (arXiv 2606.05152)."""
