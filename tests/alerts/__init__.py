"""Tests of `relayd.alerts`."""
