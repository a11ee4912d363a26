"""One file per command; its docstring is the help text."""
