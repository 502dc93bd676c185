"""Optimizers over several processes: sharded work and state, and sums over all parameters."""
