"""What each command does; `relayd.cli` imports the module of the command that runs."""
