"""Serve models over HTTP: OpenAI's API, and endpoints for collections, policies and metrics."""
