"""Runs and their folders: found, told about, read."""
