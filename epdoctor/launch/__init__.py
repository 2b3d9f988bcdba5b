"""What will be started, read from the files that start it, and what it needs. Never executes anything."""
