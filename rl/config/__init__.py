"""Recipes: their sections, reading, overriding, checking, and TRL's words for them."""
