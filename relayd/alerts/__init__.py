"""Alerts: what an operator should be told without having to look."""
