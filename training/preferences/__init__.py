"""Train on preferences: pairs of a chosen and a rejected answer, what they say, how to make them, DPO through TRL."""
