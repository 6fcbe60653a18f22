"""The model as a policy: loaded, drawn from, replayed, beside its reference."""
