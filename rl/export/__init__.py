"""A training checkpoint to a self-contained folder in the released layout."""
