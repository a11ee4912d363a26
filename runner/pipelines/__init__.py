"""Commands that follow each other: the file that says which, and the run through it."""
