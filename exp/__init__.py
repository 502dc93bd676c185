"""Experiments: one atomic training script per task, and what they share in `harness`."""
