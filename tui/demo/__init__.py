"""A simulated daemon for `--demo`, screenshots and tests: lively, and the same for the same seed."""
