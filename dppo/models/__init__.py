"""Policies: distributions, networks, and the flat buffer that holds their parameters."""
