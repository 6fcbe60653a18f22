"""UniAR-Tiny: a small UniAR that is trained from nothing, and the world it draws, reads and edits."""
