"""Code shared by several optimizers: base classes, orthogonalization, moments, perturbations."""
