"""Pure functions of tensors: what a bit's policy is, advantages, losses. Imports no other room."""
