"""The state room, on real SQLite files."""
