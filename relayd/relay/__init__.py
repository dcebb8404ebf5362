"""One stream: upstream bytes in, lines out, and the list of open streams."""
