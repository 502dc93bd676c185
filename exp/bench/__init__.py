"""Benchmarks: ratios measured in one run, ours and the others interleaved."""
