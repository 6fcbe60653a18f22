"""Noise belongs to the sample, not to the process (uniar/seeds.py): a recipe gives the same samples on 1, 2 or 8
processes, and a resumed run needs no generator state. In bfloat16 some bits also depend on the size of the batch that a
process draws (docs/architecture.md)."""

from uniar.seeds import seed_of


def bits_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """Seed of the uniforms that a sample's bits are drawn from."""
    return seed_of("bits", run_seed, step, prompt_id, sample)


def decoder_seed(run_seed: int, step: int, prompt_id: str, sample: int | None = None) -> int:
    """Seed of the decoder's initial latents: one for a prompt's whole group, or with `sample` one for each image."""
    parts = [] if sample is None else [sample]
    return seed_of("decoder", run_seed, step, prompt_id, *parts)
