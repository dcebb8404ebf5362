"""Deployment: proxies, units, containers, as the docs have them."""
