"""The target ``remote:BOX``: a Docker engine of another machine, reached by ssh or a context."""
