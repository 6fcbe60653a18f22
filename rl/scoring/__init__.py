"""Bits to images and scores: in this process or in one that does nothing else."""
