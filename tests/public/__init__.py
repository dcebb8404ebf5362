"""Tests of relayd.public."""
