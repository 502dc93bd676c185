"""Paths of optimizers over functions of two coordinates: `python -m exp.landscape`."""
