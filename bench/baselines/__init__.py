"""Other projects' trainers, measured on the same tokens as ours."""
