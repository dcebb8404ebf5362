"""Tests of relayd.config."""
