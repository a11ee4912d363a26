"""The live screen of `runner watch`."""
