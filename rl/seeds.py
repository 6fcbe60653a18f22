"""Noise belongs to the sample, not to the process: every random draw of a rollout comes from a seed made of what it is.

Ranks, batch positions and earlier draws never enter, so a recipe gives the same samples on 1, 2 or 8 processes, and a
resumed run needs no generator state.
"""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from what the noise is for; different parts give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def bits_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """Seed of the uniforms that a sample's bits are drawn from."""
    return seed_of("bits", run_seed, step, prompt_id, sample)


def decoder_seed(run_seed: int, step: int, prompt_id: str, sample: int | None = None) -> int:
    """Seed of the decoder's initial latents: one for a prompt's whole group, or with `sample` one for each image."""
    parts = [] if sample is None else [sample]
    return seed_of("decoder", run_seed, step, prompt_id, *parts)
