"""Tests of the operator's app."""
