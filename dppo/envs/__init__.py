"""Environments: many at once behind one narrow interface (`vector`), tiny ones with known values (`probes`).

Uses NumPy and Gymnasium only; the rollout collector, checkpoints, the evaluator and the tests use it.
"""
