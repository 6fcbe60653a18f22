"""What a recipe needs, from config files alone.

Read estimate.py first. More than 1300 lines, as simulation.py has the passes of the model once more, for tensors
without values.
"""
