"""What a launch will do, worked out before it is done: its values, how they are decided, how they look."""
