"""The contract between the trainer and a reward: what a reward is given, what it gives back."""

import copy
import inspect
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from PIL import Image

from uniar.errors import UserError

Scores: TypeAlias = Sequence[float | Mapping[str, Any] | Exception | None]
"""What a reward gives back for the samples of a batch; see `Reward.score`."""


class RewardError(UserError):
    """A reward that raised, or returned what is not a score.

    Attributes: `reward` (its name), `index` (row of the batch, or None where no single row is to blame), `prompt` (of
    that row; of the first row the reward was given where `index` is None).
    """

    def __init__(self, message: str, reward: str, index: int | None, prompt: str) -> None:
        super().__init__(message)
        self.reward = reward
        self.index = index
        self.prompt = prompt


@dataclass(frozen=True)
class RewardBatch:
    """What a reward sees of B samples. All lists have length B and are in the same order.

    Attributes:
        prompts: the text each image was drawn from.
        images: decoded RGB images; None for a sample that drew none, which only rewards with `needs_image = False` see.
        tasks: the task of each prompt, None where its record names none.
        metadata: the prompt record's own mapping, {} where it has none.
        bits: the visual bits (B, T, L, S, K) uint8 the images were decoded from, or None where there are none.
        source_images: the RGB pictures that each sample edits, in the size of its image; [] where it draws from text
            alone.
        texts: what each sample wrote, turn by turn; [] where it wrote nothing.

    Raises ValueError when the lengths differ.
    """

    prompts: list[str]
    images: list[Image.Image]
    tasks: list[str | None] = None  # type: ignore[assignment]  # __post_init__ replaces None
    metadata: list[Mapping[str, Any]] = None  # type: ignore[assignment]  # the same
    bits: torch.Tensor | None = None
    source_images: list[list[Image.Image]] = None  # type: ignore[assignment]  # the same
    texts: list[list[str]] = None  # type: ignore[assignment]  # the same

    def __post_init__(self) -> None:
        count = len(self.prompts)
        for name, empty in (("tasks", None), ("metadata", {}), ("source_images", []), ("texts", [])):
            if getattr(self, name) is None:
                object.__setattr__(self, name, [copy.copy(empty) for _ in range(count)])
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != count:
                raise ValueError(
                    f"a batch of {count} prompts has {len(value)} {field.name}; the lengths must be equal."
                )
        if self.bits is not None and (self.bits.ndim != 5 or self.bits.dtype != torch.uint8):
            raise ValueError(
                f"bits are {self.bits.dtype} {tuple(self.bits.shape)}, uint8 of shape (B, T, L, S, K) is needed."
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> "RewardBatch":
        """The batch of the given rows, in the given order."""
        rows = list(indices)

        def chosen(value: Any) -> Any:
            return (
                value[torch.tensor(rows, dtype=torch.long)]
                if isinstance(value, torch.Tensor)
                else [value[row] for row in rows]
            )

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        part: dict[str, Any] = {name: value if value is None else chosen(value) for name, value in given.items()}
        return RewardBatch(**part)

    @classmethod
    def joined(cls, batches: Sequence["RewardBatch"]) -> "RewardBatch":
        """Batches one behind the other; all have bits of one shape, or none has."""
        if len(batches) == 1:
            return batches[0]
        lists: dict[str, Any] = {
            field.name: [item for batch in batches for item in getattr(batch, field.name)]
            for field in fields(cls)
            if field.name != "bits"
        }
        bits = [batch.bits for batch in batches if batch.bits is not None]
        return cls(**lists, bits=torch.cat(bits) if bits else None)

    def columns(self) -> dict[str, Any]:
        """The batch as keyword arguments, for a plain function: `prompts`, `images`, `task`, `metadata`, `bits`,
        `source_images`, `texts`, and one list for each metadata key (None for the samples without it). The batch's own
        names win over a metadata key."""
        keys = dict.fromkeys(key for row in self.metadata for key in row)
        columns = {key: [row.get(key) for row in self.metadata] for key in keys}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tasks"}
        return {**columns, **own, "task": self.tasks}


class Reward:
    """Base class of a reward. A subclass writes `score`; its typed `__init__` keywords are its parameters in a recipe.

    `__init__` must be cheap: anything that takes long or much memory belongs in `load`.
    """

    name: str = ""
    """What the reward is called in the recipe and in the metrics; set when a suite builds it."""

    pointwise: bool = True
    """Whether a sample's score depends on that sample alone. False for a reward that compares the samples of a prompt:
    a run then gives it all samples of one prompt at a time, whichever processes drew them, and never a part of them."""

    overlaps_decoding: bool = True
    """Whether it may score the images that are there, in a thread of its own, while the decoder draws the next. False
    for a reward that uses what the trainer itself uses, such as the policy's weights."""

    usual_range: tuple[float, float] | None = None
    """Scores between which most images fall; what `normalize: true` in a recipe maps to 0 and 1."""

    needs_image: bool = True
    """Whether a sample without an image has no score. False for a reward of what was written, which then sees `None`
    for an image."""

    wants_policy: bool = False
    """Whether it looks at the model that is trained (or evaluated), which `bind` then gives it."""

    nested: tuple[str, ...] = ()
    """Its parameters that are entries of other rewards: it is given these rewards, built."""

    @property
    def is_async(self) -> bool:
        """Whether `score` is a coroutine function; such rewards run beside the others."""
        return inspect.iscoroutinefunction(self.score)

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises UserError for a prompt with metadata that `score` would fail on whatever the image. Asked of every
        prompt before anything is loaded, so that a misspelt line of a prompt file is found then."""

    def check_columns(self, metadata: Iterable[Mapping[str, Any]]) -> None:
        """Raises UserError where none of the samples that there will be has what it needs of their metadata."""

    def load(self) -> None:
        """Reads weights, builds what scoring needs. Called once, before the first `score`; raises UserError for a file
        that is missing or wrong, which stops the run whatever `on_error` says."""

    def to(self, device: str | torch.device) -> None:
        """Moves the weights: to the GPU for scoring and to the CPU between, with `offload`. May come before `load`."""

    def close(self) -> None:
        """Gives back what outlives a batch: connections, threads. The reward may be used again afterwards."""

    def bind(self, policy: torch.nn.Module | None, processor: Any) -> None:
        """Hands over the UniAR model as it is right now and its processor, before a batch; (None, None) when they may
        not be used any longer. Called only with `wants_policy`."""

    def score(self, batch: RewardBatch) -> Scores | Coroutine[Any, Any, Scores]:
        """One finite number per sample, in the batch's order; None or NaN where the reward does not apply to a sample;
        an exception (not raised) in the place of a sample that it failed on, which spares the others another attempt. A
        mapping may stand for a number: its `score` is the number, its other entries (strings, numbers, lists) are
        details for the logs. May be `async def`. Whatever it raises is reported with the reward's name and the sample;
        a UserError (a sample whose metadata cannot be used) is not tried again."""
        raise NotImplementedError(f"{type(self).__name__} has no score method.")
