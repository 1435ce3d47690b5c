"""The HTTP face of the house: OpenAI's API, and the little that is our own beside it."""
