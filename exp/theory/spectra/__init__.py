"""Spectra and curvature of updates: what whitening and orthogonalization make of a gradient."""
