"""What each command does; `relayd.cli` imports the one that is asked for."""
