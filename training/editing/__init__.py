"""Edit facts in a model's weights, in closed form and without forgetting the edits before."""
