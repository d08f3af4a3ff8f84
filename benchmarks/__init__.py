"""Measurements beside the peer, each in one run; `python -m benchmarks` runs them all."""
