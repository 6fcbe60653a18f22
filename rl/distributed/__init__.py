"""Processes: what must be set up before they train together, how they share work and weights."""
