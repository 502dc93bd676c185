"""What the training scripts share: configuration, closure, run folder, checkpoints, plots."""
