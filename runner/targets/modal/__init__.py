"""The cloud: what the runner asks of Modal. Modules here import modal late, inside functions."""

TARGET_NAME = "cloud"
