"""`relayd init`: from nothing to a configuration that works, for one person or for the whole machine."""
