"""The operator's terminal app; it talks to relayd only through relayd.admin's client."""
