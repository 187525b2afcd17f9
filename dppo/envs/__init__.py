"""Environments: many at once behind one narrow interface (`vector`), tiny ones with known values (`probes`)."""
