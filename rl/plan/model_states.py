"""Weights, gradients and optimizer of a recipe's policy on one GPU: without DeepSpeed, and under ZeRO 1 to 3.

ZeRO: arXiv 1910.02054. What DeepSpeed adds to the paper's sums (buckets, gathered layers, a float32 copy of the
gradients while the optimizer steps) is as its version 0.19 does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from rl.config.deepspeed_file import accumulates_in_float32, deepspeed_settings
from rl.config.sections import Recipe

PHASES = ("rollout", "evaluate", "decode", "replay", "update", "step")
"""Of an update: drawing, drawing for an evaluation, decoding and scoring, log-probabilities of the reference, forward
and backward, optimizer."""

ALL_PHASES = frozenset(PHASES)


@dataclass(frozen=True)
class Part:
    """What some phases hold."""

    name: str
    bytes: int
    phases: frozenset[str] = ALL_PHASES


@dataclass(frozen=True)
class ZeroSettings:
    """What counts for memory of a DeepSpeed configuration. Stage 0: none is used."""

    stage: int = 0
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False
    bucket: int = 0
    """elements of a reduction bucket"""
    buckets: int = 1
    live: int = 0
    """ZeRO-3: elements that may be gathered at once"""
    subgroup: int = 0
    """ZeRO-3: elements that the optimizer updates at once"""
    float32_gradients: bool = False
    """whether micro-batches are added up in float32"""

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, hidden: int) -> "ZeroSettings":
        """From what DeepSpeed is told, with its defaults. "auto" as transformers fills it in."""
        if config is None:
            return cls()
        zero = dict(config.get("zero_optimization") or {})
        stage = int(zero.get("stage", 0))

        def elements(key: str, default: float, automatic: int) -> int:
            value = zero.get(key, default)
            return automatic if value == "auto" else int(value)

        def on_cpu(key: str) -> bool:
            return (zero.get(key) or {}).get("device", "none") != "none"

        return cls(
            stage=stage,
            optimizer_on_cpu=on_cpu("offload_optimizer"),
            weights_on_cpu=stage == 3 and on_cpu("offload_param"),
            bucket=elements("reduce_bucket_size", 5e8, hidden**2),
            buckets=2 if zero.get("overlap_comm", stage == 3) else 1,
            live=elements("stage3_max_live_parameters", 1e9, int(1e9))
            + elements("stage3_prefetch_bucket_size", 5e7, int(0.9 * hidden**2)),
            subgroup=elements("sub_group_size", 1e9, int(1e9)),
            float32_gradients=accumulates_in_float32(config),
        )


@dataclass(frozen=True)
class ModelStates:
    """The policy's weights by number and type, and how they are spread."""

    counts: dict[str, int]
    """`policy`, and `trained` among them"""
    whole: int
    """bytes of all weights"""
    trained: tuple[tuple[int, int], ...]
    """(number, bytes each) of the trained ones by type"""
    has_reference: bool
    reference_on_gpu: bool
    reference_phases: frozenset[str]
    """when a reference that waits on the CPU is on the GPU"""
    states_a_weight: int
    zero: ZeroSettings
    keeps_old_adapters: bool = False
    """as the reference of algorithm.reference_refresh"""
    experts: int = 0
    """models that are distilled, each taken to be as large as the policy"""
    experts_on_gpu: bool = False
    average: Literal["gpu", "cpu"] | None = None
    """where the averaged weights of model.ema wait"""

    @classmethod
    def of(cls, recipe: Recipe, policy: nn.Module, hidden: int) -> "ModelStates":
        zero = ZeroSettings.of(deepspeed_settings(recipe), hidden)
        mixed = recipe.trainer.get("bf16", recipe.model.dtype == "bfloat16")
        # DeepSpeed casts the module, adapters too; without it they stay as they are.
        cast = None if not zero.stage else 2 if mixed else 4
        parameters = list(policy.parameters())
        by_type: dict[int, int] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                size = cast or parameter.itemsize
                by_type[size] = by_type.get(size, 0) + parameter.numel()
        trained = sum(by_type.values())
        return cls(
            counts={"policy": sum(parameter.numel() for parameter in parameters), "trained": trained},
            whole=sum(parameter.numel() * (cast or parameter.itemsize) for parameter in parameters),
            trained=tuple((number, size) for size, number in by_type.items()),
            has_reference=recipe.needs_reference and recipe.model.lora is None,
            reference_on_gpu=recipe.model.reference_device == "gpu",
            reference_phases=_reference_phases(recipe),
            states_a_weight=_optimizer_states(str(recipe.trainer.get("optim", "adamw_torch"))),
            zero=zero,
            keeps_old_adapters=recipe.model.lora is not None and recipe.algorithm.reference_refresh is not None,
            experts=0 if recipe.distill is None else recipe.distill.models(recipe.model),
            experts_on_gpu=recipe.distill is not None and recipe.distill.device == "gpu",
            average=None if recipe.model.ema is None else recipe.model.ema.device,
        )

    @property
    def reference_leaves(self) -> bool:
        """Whether it waits on the CPU, but for the output layer of texts once that is asked for."""
        return self.has_reference and not self.reference_on_gpu and self.zero.stage != 3

    @property
    def trained_bytes(self) -> int:
        return sum(number * size for number, size in self.trained)

    def average_bytes(self, gpus: int) -> int:
        """Each process's share of the averaged weights, in float32."""
        return 0 if self.average is None else 4 * self.counts["trained"] // gpus

    def parts(self, gpus: int) -> list[Part]:
        """Weights, gradients and optimizer of one GPU, and what DeepSpeed and DDP need beside them."""
        number, zero = self.counts["trained"], self.zero
        after_backward, backward = frozenset({"update", "step"}), frozenset({"update"})
        sharded = gpus if zero.stage >= 1 else 1
        if not zero.stage:
            copies = self.trained_bytes if gpus > 1 else 0
            states = self.states_a_weight * self.trained_bytes
            return [
                Part("policy weights", self.whole),
                Part("gradients", self.trained_bytes, after_backward),
                Part("DDP buckets", copies),
                Part("optimizer", states),
            ]
        master = (4 + 4 * self.states_a_weight) * number // sharded
        held = 4 * number if zero.float32_gradients else self.trained_bytes
        gradients = held // (gpus if zero.stage >= 2 else 1)
        float32 = 4 * number // sharded
        weights = self.whole // (gpus if zero.stage == 3 else 1)
        if zero.optimizer_on_cpu:
            master = gradients = float32 = 0
        parts = [
            Part("policy weights", 0 if zero.weights_on_cpu else weights),
            # ZeRO-3 keeps its part of the gradients allocated.
            Part("gradients", gradients, ALL_PHASES if zero.stage == 3 else after_backward),
            Part("optimizer", master),
            Part(
                "float32 gradients",
                min(float32, 4 * zero.subgroup) if zero.stage == 3 else float32,
                frozenset({"step"}),
            ),
        ]
        size = self.whole // self.counts["policy"]
        bucket = min(zero.bucket * zero.buckets, number) * size
        parts.append(Part("reduction buckets", bucket, backward))
        if zero.stage == 3:
            live = min(zero.live, self.counts["policy"]) * size
            parts.append(Part("gathered layers", live, frozenset({"replay", "update"})))
            parts.append(Part("gathered policy", self.whole, frozenset({"rollout", "evaluate"})))
        return parts

    def reference_parts(self, gpus: int) -> list[Part]:
        """A separate reference model, and experts. Those that wait on the CPU come when they are asked, one at a
        time; ZeRO-3 shards all like the policy."""
        if self.keeps_old_adapters:
            return [Part("reference", 4 * self.counts["trained"] // gpus)]
        models = (("reference", int(self.has_reference), self.reference_on_gpu),)
        models += (("experts", self.experts, self.experts_on_gpu),)
        parts = []
        for name, number, on_gpu in models:
            if self.zero.stage == 3:
                parts.append(Part(name, number * self.whole // gpus))
            elif on_gpu:
                parts.append(Part(name, number * self.whole))
            else:
                there = self.reference_phases if name == "reference" else frozenset({"replay"})
                parts.append(Part(name, min(number, 1) * self.whole, there))
        return [part for part in parts if part.bytes]

    def host(self, gpus: int) -> int:
        """Bytes on the CPU of one process."""
        number, total = self.counts["trained"], 0
        if self.zero.optimizer_on_cpu:
            total += (4 + 4 * self.states_a_weight + 4) * number // gpus
        if self.zero.weights_on_cpu:
            total += self.whole // gpus
        total += self.whole * self.reference_leaves
        if self.zero.stage != 3:
            total += self.whole * (0 if self.experts_on_gpu else self.experts)
        if self.average == "cpu":
            total += self.average_bytes(gpus)
        return total


def _reference_phases(recipe: Recipe) -> frozenset[str]:
    """It comes while this process decodes, if the replay follows: with dynamic sampling nobody knows which round is the
    last. The text-KL term asks it in the first micro-batch of an update."""
    phases = set()
    if recipe.algorithm.has_kl_term:
        phases.add("replay")
        if recipe.rollout.dynamic_sampling is None and not recipe.decode.processes:
            phases.add("decode")
    if recipe.understanding.kl_beta:
        phases.add("update")
    return frozenset(phases)


def _optimizer_states(name: str) -> int:
    """Values that an optimizer keeps for each weight, beside it."""
    if "adafactor" in name or name == "sgd":
        return 0
    if "lion" in name or "rmsprop" in name:
        return 1
    return 2
