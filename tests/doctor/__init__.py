"""`relayd doctor`."""
