"""The plan of a launch: its steps, files to upload, GPUs, and estimates of time and cost."""
