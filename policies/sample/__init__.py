"""Policies of the stage `sample`: shape the distribution that a token is drawn from."""
