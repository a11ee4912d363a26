"""What a run's folder tells of it, read through its target: while it lives, and long after."""
