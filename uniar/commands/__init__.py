"""The commands that use a checkpoint as it is: `uniar-rl chat`, `generate` and `edit`.

`arguments` says what they take; each command's module has `run(arguments)`, which raises UserError for bad input.
"""
