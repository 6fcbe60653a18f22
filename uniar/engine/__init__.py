"""The rollout engine: prefixes, the layers on their caches, steps over static buffers, the memory they take."""
