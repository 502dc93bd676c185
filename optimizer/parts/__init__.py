"""What several optimizers share: orthogonalization, moments, tracks, sharpness, composition."""
