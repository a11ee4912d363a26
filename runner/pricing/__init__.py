"""GPUs that Modal rents, their prices, and estimates of what a run takes."""
