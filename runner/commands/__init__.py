"""The commands: each file here is one. Its docstring is its help text, ``command`` in it what runs."""
