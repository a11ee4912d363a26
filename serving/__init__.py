"""Use a trained network: sample, evaluate, chat, serve over HTTP, export to Hugging Face format."""

import model  # noqa: F401  # it lets Ctrl-C end a program while torch is imported
