"""Rewards served to other machines: the server, and requests scored together."""
