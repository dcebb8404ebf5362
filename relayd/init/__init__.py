"""`relayd init`: writes a configuration that works, for one person or for the whole machine."""
