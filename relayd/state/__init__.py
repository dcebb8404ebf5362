"""What survives a restart: key ring, request log and audit, on one SQLite file."""
