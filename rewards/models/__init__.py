"""Learned scores, and what rewards with a model share."""
