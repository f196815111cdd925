"""A camera's frames, classified for as long as it runs, and where the answers go."""
