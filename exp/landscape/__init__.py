"""Optimizers walking over functions one can look at: `python -m exp.landscape`."""
