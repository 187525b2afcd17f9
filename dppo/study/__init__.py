"""Many runs: what a sweep varies, and what came of it."""
