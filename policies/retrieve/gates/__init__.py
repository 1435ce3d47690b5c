"""Gates of `l_rag`: each decides from a draft whether to look passages up. One class each, one file for each paper.

A file of this package, or a plug-in module, adds a gate by defining a subclass of `Gate` with a `name`. Thresholds are
in the gate's own unit; entropies are in nats.
"""
