"""What a recipe can say of the model: see rl/config/sections.py."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from typing import Literal

from uniar.reading.settings import setting

Place = Literal["gpu", "cpu"]
LARGEST_SEED = 4_000_000_000
"""of a run: NumPy's generators, which transformers seeds, take 32 bits, and TRL adds the number of the process."""
_WEIGHTS = "the trained weights are the checkpoint's, only the reference would be another"
_ADAPTERS = "the checkpoint's weights go with its own adapters"


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters on the text layers instead of full fine-tuning; the reference policy is the model with its
    adapters switched off."""

    r: int = setting("Rank of the adapters.", 16, ge=1, fixed=_ADAPTERS)
    alpha: float = setting(
        "Scale of the adapters: their output is multiplied by alpha / r.", 32.0, gt=0, fixed=_ADAPTERS
    )
    target_modules: list[str] | None = setting(
        "Names of the linear layers that get an adapter; null: all attention and MLP projections of the text layers "
        "and of the visual decoder.",
        None,
        fixed=_ADAPTERS,
    )


@dataclasses.dataclass(frozen=True)
class EmaSection:
    """An exponential moving average of the trained weights, kept beside them in float32."""

    decay: float = setting(
        "Share of the old average in the new one: decay · average + (1 − decay) · weights.",
        0.99,
        ge=0,
        lt=1,
    )
    update_every: int = setting("Updates between two steps of the average.", 1, ge=1)
    device: Place = setting(
        "Where the average is kept: gpu is the training device, where it takes 4 bytes per trained weight, divided by "
        "the processes; cpu the machine's memory.",
        "gpu",
    )


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The policy to train and the frozen reference it is held to."""

    path: str | None = setting(
        "A UniAR checkpoint: a folder, or a model id on the Hugging Face hub. Exactly one of path and preset is given.",
        None,
        path=True,
        fixed=_WEIGHTS,
    )
    preset: str | None = setting("Name of a small model with random weights, built at first use.", None, fixed=_WEIGHTS)
    seed: int = setting("Seed of the random weights of a preset.", 0, ge=0, le=LARGEST_SEED, fixed=_WEIGHTS)
    dtype: Literal["float32", "bfloat16"] = setting("Type of the weights.", "bfloat16")
    attention: Literal["eager", "sdpa", "flash_attention_2"] = setting(
        "Attention implementation; flash_attention_2 needs the flash-attn package.", "sdpa"
    )
    lora: LoraSection | None = setting("Train adapters; null: full fine-tuning.", None, fixed=_ADAPTERS)
    ema: EmaSection | None = setting(
        "Keep an average of the weights; `evaluate.ema` and `uniar-rl export --ema` use it. null: none.", None
    )
    reference_device: Place = setting(
        "Where a separate reference model waits between uses: gpu keeps it on the training device; cpu takes "
        "page-locked memory of the machine instead, for each GPU, and copies it while drawings are decoded. The copy "
        "is waited for where a replay does not follow decoding in this process: with `rollout.dynamic_sampling`, "
        "`decode.processes`, episodes that only write, and for `understanding.kl_beta`. LoRA needs no separate "
        "reference, ZeRO-3 shards it.",
        "gpu",
    )

    @property
    def trainable(self) -> Literal["full", "lora"]:
        """Which weights are trained, as `lora` says."""
        return "full" if self.lora is None else "lora"
