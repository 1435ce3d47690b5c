"""Kill, stop and restart what a server stands on, under load, and count what its clients lose."""

from waver.benchmarks.kills.run import app as app
