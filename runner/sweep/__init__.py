"""Sweeps: many runs of one recipe or experiment, under one budget."""
