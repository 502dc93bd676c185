"""Every number of the paper beside a measured one: `python -m exp.reproduce`."""
