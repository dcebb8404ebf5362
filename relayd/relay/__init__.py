"""One stream: upstream bytes in, lines out, and the registry of open streams."""
