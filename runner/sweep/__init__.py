"""Sweeps: many runs of one recipe, experiment or command, under one budget."""
