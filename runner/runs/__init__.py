"""Find, read and describe runs and their folders."""
