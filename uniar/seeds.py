"""Seeds made of what the noise is for, so that neither ranks, nor places in a batch, nor earlier draws enter."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed; different parts give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
