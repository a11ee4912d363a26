"""From the parsed command line to a request, and its launch."""
