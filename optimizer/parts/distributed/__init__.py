"""Data-parallel optimizers: work and state sharded over processes, sums over all parameters."""
