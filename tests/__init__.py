"""Tests mirror the source tree; each docstring is the sentence it proves."""
