"""State on disk that outlives a process: models, and runs that can be killed at any time."""
