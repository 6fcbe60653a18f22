"""The commands of `uniar-rl` that live here."""
