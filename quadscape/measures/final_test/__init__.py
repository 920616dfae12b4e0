"""Test data, read once."""
