"""Small random checkpoints in the released layout, built offline."""
