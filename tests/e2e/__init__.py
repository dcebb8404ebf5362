"""The daemon as a process of its own, with real clients in front of it."""
