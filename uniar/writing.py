"""The model writes: tokens of text with the backbone's layers cached, each sampled from the whole distribution.

No candidate is cut off (no top-k, no top-p), so log-probabilities are those of the policy itself, as a teacher-forced
pass has them. Tokens of pictures may come too, at their probability; in a text they are passed over.

Shapes: U prompts · B samples · N new tokens at most · A tokens of the longest text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.engine import Engine
from uniar.engine.memory import fitting, text_bytes
from uniar.engine.prefix import prefill
from uniar.engine.running import check_engine, run
from uniar.engine.text_steps import TextSteps
from uniar.errors import UserError
from uniar.turn_prompt import TurnPrompt, owners

LOOK_EVERY = 16
"""Tokens after which the host looks whether all samples have ended; each look waits for the device."""


@dataclass(frozen=True)
class Written:
    """B texts."""

    tokens: Tensor
    """(B, A) int64; behind a sample's end a token that means nothing"""
    lengths: Tensor
    """(B,) int64, the token that ends the turn included where it came"""
    log_probs: Tensor
    """(B, A) float32 of each token at the temperature that wrote it (of 1 where it was 0); 0 behind the end"""
    ended: Tensor
    """(B,) bool: the turn ended; else the tokens ran out"""

    @property
    def mask(self) -> Tensor:
        """(B, A) bool: which tokens are a sample's."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]

    def texts(self, processor: Any) -> list[str]:
        """B strings, without special tokens and without ids that the tokenizer has not."""
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return processor.batch_decode([row[:length] for row, length in rows], skip_special_tokens=True)


def text_noise(seeds: Sequence[int], tokens: int) -> Tensor:
    """Uniforms (B, N) float32 on the CPU, each sample's from its own seed, whoever its neighbours are."""
    return torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def end_tokens(model: DrawingModel) -> list[int]:
    """The tokens that end a turn, as the checkpoint's generation_config has them. Raises UserError for none."""
    ends = model.generation_config.eos_token_id
    found = list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    if not found:
        raise UserError(
            "the checkpoint does not say which token ends a turn, so no text would end; give its "
            "generation_config.json an eos_token_id."
        )
    return found


@torch.no_grad()
def write(
    model: DrawingModel,
    prompt: TurnPrompt,
    noise: Tensor,
    *,
    prompt_index: Sequence[int] | None = None,
    ends: Sequence[int],
    temperature: float = 1.0,
    engine: Engine = "eager",
    memory_budget: int | None = None,
    seen: Callable[[list[int]], object] | None = None,
) -> Written:
    """Writes B texts from their uniforms `noise` (B, N), one per token, each until one of the tokens `ends` comes.

    Sample i belongs to prompt `prompt_index[i]`, by default i // (B / U). A token is the inverse of the distribution
    softmax(logits / T) at its uniform number; temperature 0 takes the likeliest. `engine` says how steps are run
    (uniar/engine/running.py), `memory_budget` (bytes) bounds caches and activations. In float32 a text is the same
    whatever it is written with. `seen` is called after each token with that token of each sample of the batch; the host
    then waits for each. Returned tensors live on the model's device.

    Raises UserError for an engine that the device has not and when the budget does not hold one sample, ValueError for
    noise, prompt indices or a temperature that don't fit.
    """
    samples, tokens = len(noise), prompt.new_tokens
    prompt_index = owners(prompt, samples, prompt_index)
    if noise.shape[1:] != (tokens,) or not tokens:
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {(samples, max(tokens, 1))}.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest token) or more.")
    check_engine(engine, model.device)
    needed = text_bytes(model, prompt.input_ids.shape[1], tokens, 1, 1)
    size = fitting(needed, samples, memory_budget, "write a shorter text")
    order = sorted(range(samples), key=prompt_index.__getitem__)  # a prompt's samples go together
    pad, layers = model.generation_config.pad_token_id, model.model.language_model.layers

    def write_batch(batch: list[int]) -> TextSteps:
        numbers = sorted({prompt_index[sample] for sample in batch})
        index = torch.tensor([numbers.index(prompt_index[sample]) for sample in batch], device=model.device)
        prefix = prefill(model, prompt.rows(numbers), layers)
        steps = TextSteps(model, prefix, index, noise[batch], ends, ends[0] if pad is None else pad, temperature)
        done = 0

        def taken() -> bool:
            nonlocal done
            done += 1
            if seen is not None:
                seen(steps.tokens[done - 1].tolist())
            return (seen is not None or done % LOOK_EVERY == 0) and bool(steps.ended.all())

        with _cumulative_sums():
            run(steps, engine, taken)
        return steps

    parts = [write_batch(order[start : start + size]) for start in range(0, samples, size)]
    lengths, ended = (torch.cat([getattr(part, name) for part in parts]) for name in ("lengths", "ended"))
    longest, back = int(lengths.max()), torch.tensor(order, device=model.device).argsort()
    found = [torch.cat([getattr(part, name)[:longest] for part in parts], 1) for name in ("tokens", "log_probs")]
    return Written(found[0].T[back], lengths[back], found[1].T[back], ended[back])


@contextmanager
def _cumulative_sums() -> Iterator[None]:
    """Inside, a GPU may sum up a distribution where only deterministic algorithms are allowed (`full_determinism`),
    which torch refuses: the order of a sum in float64 shows in no choice."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
