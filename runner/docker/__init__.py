"""What stands between the runner and Docker: the compose file, containers, the user's settings."""
