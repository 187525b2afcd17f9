"""Trajectory dumps: format, writer, readers, validation, exports; `python -m dppo.trajectories`."""
