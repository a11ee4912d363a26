"""The target ``cloud``: jobs on Modal. Modules here import modal inside functions."""

TARGET_NAME = "cloud"
