"""Tests of `relayd.admin`."""
