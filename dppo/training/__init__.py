"""Training on one rank: what it builds, how it collects and learns, and the loops of each mode."""
