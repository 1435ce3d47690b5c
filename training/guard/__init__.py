"""Train the projector of `safeharbor` from labelled vectors."""
