"""Timings side by side with other ways to compute the same; each module is one command, none is a test."""
