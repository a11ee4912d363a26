"""Transfers between a folder of this machine and a volume in the cloud.

names → listing → plan (pure) → download or upload, in parallel → checked → journal; ``latest`` moves last.
``docs/volumes.md`` says what is promised.
"""
