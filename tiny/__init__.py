"""UniAR-Tiny: a small UniAR that is trained from nothing, and the world it draws, reads and edits."""

import uniar  # noqa: F401  (makes torchvision importable before diffusers is)
