"""P(yes) of a model that looks."""
