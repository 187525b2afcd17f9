"""Training on one rank: what the rank builds, how it collects and learns, and the loops of each mode."""
