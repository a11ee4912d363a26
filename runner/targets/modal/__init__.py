"""The target ``cloud``: jobs on Modal. Its modules import modal inside functions."""

TARGET_NAME = "cloud"

MASTER_PORT = 29500  # of several machines; torch's default
