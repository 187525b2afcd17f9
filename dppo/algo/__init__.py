"""The mathematics: losses, returns, moments, optimisers."""
