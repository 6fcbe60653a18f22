"""Recipes: their sections, reading, overriding, checking, and TRL's words for them.

A third of its lines are data: help texts, and the table of what each argument of transformers and TRL may be.
"""
