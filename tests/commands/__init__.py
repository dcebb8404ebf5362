"""Tests of `relayd.commands`."""
