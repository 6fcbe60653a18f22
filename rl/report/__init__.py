"""Runs to be read: what changed between evaluations, how surely, and one HTML page of it."""
