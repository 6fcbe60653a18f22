"""Runs to be read: what changed between evaluations, how surely, and one HTML page of it.

The page has nine sections and a compare mode; what each shows is a function of the same run, so they stay in one room.
"""
