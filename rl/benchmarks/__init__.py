"""Public benchmarks: their prompts, drawn at UniAR's settings, scored here or laid out for their own scorers."""
