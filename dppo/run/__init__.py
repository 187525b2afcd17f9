"""python -m dppo.run: how a run starts, goes on after deaths, and ends."""
