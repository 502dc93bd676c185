"""Every number of a paper beside a measured one: `python -m exp.reproduce`."""
