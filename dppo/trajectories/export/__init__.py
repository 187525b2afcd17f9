"""Exports of trajectory dumps: Minari, D4RL, tables."""
