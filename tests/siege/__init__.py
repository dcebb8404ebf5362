"""Attacks on a real daemon, scaled down; `scripts/soak` runs the same at full size."""
