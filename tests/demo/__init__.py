"""Tests of relayd.demo."""
