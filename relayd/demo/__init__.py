"""relayd without a provider: an offline upstream, and a showcase of a busy daemon for the terminal app."""
