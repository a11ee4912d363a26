"""Use a trained network: sample, evaluate, chat, serve over HTTP, export to Hugging Face format."""
