"""UniAR-Tiny: a small UniAR that is trained from nothing, and the world it draws, reads and edits.

One room for the whole of an example: its world, its data, its rewards, and in `stages` how it is trained.
"""

import uniar  # noqa: F401  (makes torchvision importable before diffusers is)
