"""Held-out prompts and questions, the same noise each time."""
