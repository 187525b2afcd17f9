"""Dumps for others: Minari, D4RL, tables."""
