"""Unmodified clients of OpenAI's API in front of a real daemon: only base URL and key are changed."""
