"""Copy files between a folder on this machine and a volume on Modal or a box.

A transfer lists both sides, makes a plan, moves files in parallel, verifies them and records them
in the journal; a run's ``latest`` moves last. docs/volumes.md has the guarantees.
"""
