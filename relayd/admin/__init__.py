"""What the operator sees: routes on the Unix socket, wire shapes and the client."""
