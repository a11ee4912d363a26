"""What was typed: options, words and paths, what they are, and what the shell offers behind TAB."""
