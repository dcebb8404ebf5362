"""The attacks of `scripts/soak`."""
