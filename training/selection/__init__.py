"""Choose what to train on, and what to ask next: information in data, targeted selection, learnt active learning."""
