"""The run directory: checkpoints, metrics, summaries; no MPI, and no pickle."""
