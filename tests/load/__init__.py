"""Attacks and loads on a real daemon; `--size large` (`scripts/soak`) takes the full numbers."""
