"""What the runner and the code inside a job agree on: recipe, run's folder and record, exit codes. No torch."""
