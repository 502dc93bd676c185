"""A resumable queue of training runs, executed by local processes or Slurm."""
