"""Attacks and loads on a real daemon; most of them only with `--size large` (`scripts/soak`)."""
