"""The folder that a run leaves, and its pictures."""
