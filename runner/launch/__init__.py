"""What the user wants, checked: a job, a command, an experiment, or one of them taken up again."""
