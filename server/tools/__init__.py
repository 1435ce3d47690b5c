"""Tools in chat: what a request offers, how a call is forced, and how calls are read from what a model writes."""
