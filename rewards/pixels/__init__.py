"""Arithmetic on pixels and bits."""
