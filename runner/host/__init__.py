"""What the target host needs besides the plan: commands, and processes that outlive the runner."""
