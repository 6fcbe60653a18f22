"""How UniAR-Tiny is made: its sizes, a file for each stage of its training, and what the stages share.

More than ten files, as each stage is one, and all are needed to make one checkpoint.
"""
