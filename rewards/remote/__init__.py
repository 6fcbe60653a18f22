"""Rewards that others serve, over HTTP, and what travels."""
