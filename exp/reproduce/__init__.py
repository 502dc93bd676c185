"""Compare every number of a paper with a measured one: `python -m exp.reproduce`."""
