"""Files that users name, each kind read in one place: JSON, JSON lines, pictures, prompts, plug-ins. Also files written
whole.

Recipes and settings are read here as well, for rewards and rl alike, and so it has more lines than other rooms.
"""
