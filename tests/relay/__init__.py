"""Tests of relayd.relay."""
