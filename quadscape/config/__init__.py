"""Sections of the experiment file, and how YAML is read."""
