"""The targets: host, Docker Compose and Modal. `runner/target.py` says what a target is."""
