"""Policies of the stage `decode`: choose which engine writes each token."""
