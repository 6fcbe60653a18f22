"""The commands that use a checkpoint as it is: `uniar-rl chat`, `generate` and `edit`.

Each command's module has `add_arguments(parser)` and `run(arguments)`; `run` raises UserError for bad input.
"""
