"""A run as one HTML page: `runner report`."""
