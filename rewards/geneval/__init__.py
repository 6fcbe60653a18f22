"""GenEval without mmdet: what is asked for, credit, colors, objects."""
