"""The rollout engine: prefixes, layers on their caches, steps over static buffers, how they are run, their memory."""

from typing import Literal

Engine = Literal["eager", "compiled", "graph", "auto"]
"""See uniar/engine/running.py."""
