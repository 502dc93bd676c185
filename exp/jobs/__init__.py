"""Many training runs as one: a queue of commands, on local processes or Slurm."""
