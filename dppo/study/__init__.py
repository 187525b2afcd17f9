"""Sweeps of many runs: the settings that vary, and the results."""
