"""What Modal rents, what it costs, and what a run will take of it."""
