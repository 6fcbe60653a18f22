"""The model as a policy: loaded, played, replayed, beside its reference.

What a sample is, does and leaves is here, so that a step is read in one room; that is why there are a dozen files.
"""
