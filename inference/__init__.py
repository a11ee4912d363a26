"""Tokens and scores from a network; the trainer and `serving` use it."""
