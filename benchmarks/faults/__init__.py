"""`waver bench faults`: hostile requests, fuzz, a soak and an overload against a real server of the bundled pair."""

from waver.benchmarks.faults.run import app

__all__ = ["app"]
