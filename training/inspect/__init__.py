"""Look into a model: pictures of what its parts do on a text."""
