"""What differs between runs: `runner compare`."""
