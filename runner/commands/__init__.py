"""The commands; COMMANDS in runner/cli.py lists their files."""
