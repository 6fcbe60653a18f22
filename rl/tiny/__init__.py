"""UniAR-Tiny: a small UniAR that is trained from nothing, and the world it draws, reads and edits.

One room for the whole of an example: its world, its data, and a script for each stage of its training.
"""

import uniar  # noqa: F401  (makes torchvision importable before diffusers is)
