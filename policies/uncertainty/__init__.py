"""Uncertainty of answers: measures of a model's answers, a policy that acts on them, and their calibration."""
