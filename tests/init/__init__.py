"""`relayd init`."""
