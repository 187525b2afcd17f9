"""The machine and its batch system: launcher, Slurm, signals, guards, watchdog."""
