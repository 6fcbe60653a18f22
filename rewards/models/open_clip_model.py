"""open_clip models for rewards: by name with a published tag or a local file, from a folder, from the hub."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rewards.contract.needs import WEIGHT_SUFFIXES
from rewards.models.weights import check_weights, read_weights
from uniar.errors import UserError, did_you_mean
from uniar.reading.files import reason_of, user_path

logger = logging.getLogger(__name__)

_LOCAL_DIR, _HUB = "local-dir:", "hf-hub:"
_FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # as open_clip saves them
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class OpenClip:
    """Which open_clip model. Raises UserError for weights that do not go with the name.

    Attributes:
        name: an architecture ("ViT-L-14"), "hf-hub:owner/name", or "local-dir:path" (a folder with
            open_clip_config.json).
        weights: a tag ("openai", "laion2b_s32b_b82k") or a local weight file. None for "hf-hub:", which brings its own,
            and for the file that open_clip itself saves in a "local-dir:".
        weights_like: for a local file of a named architecture, the tag it equals in image preprocessing and activation.
            None takes what all tags of the architecture have in common, or, where they differ, open_clip's defaults,
            with a warning.
    """

    name: str
    weights: str | None
    weights_like: str | None = None

    def __post_init__(self):
        if self.name.startswith(_HUB) and self.weights is not None:
            raise UserError(f"weights is {self.weights!r}, but {self.name!r} brings its own; write weights: null.")

    def build(self, look: Mapping[str, Any] | None = None) -> torch.nn.Module:
        """The model with its weights. `look` is what a local file's model has of preprocessing and activation; None
        finds it as `weights_like` says. Raises UserError for what does not exist or does not fit together."""
        import open_clip
        from transformers.initialization import no_init_weights

        named = not self.name.startswith((_LOCAL_DIR, _HUB))
        if named and self.name not in open_clip.list_models():
            hint = did_you_mean(self.name, open_clip.list_models())
            raise UserError(f"model {self.name!r} is not an architecture that open_clip knows.{hint}")
        tags = open_clip.list_pretrained_tags_by_model(self.name) if named else []
        if self.name.startswith(_HUB) or self.weights in tags:
            return self._download(open_clip)
        path = self._weight_file(tags)
        found = read_weights(path)
        look = self.look(open_clip, tags) if look is None else dict(look)
        quick_gelu = look.pop("quick_gelu", False)
        try:
            # The weights come next: making some up would take longer and more memory than reading them.
            with no_init_weights(), _without_warning("initialized randomly"):
                model = open_clip.create_model(
                    self.name,
                    load_weights=False,
                    pretrained_text=False,
                    force_quick_gelu=quick_gelu,
                    force_preprocess_cfg=look,
                )
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise UserError(f"model {self.name!r} cannot be built: {error}") from error
        found = _as_open_clip(open_clip, model, found)
        check_weights(path, found, model, f"open_clip's {self.name!r}")
        model.load_state_dict(found, assign=True)
        return model

    def preprocess(self, model: torch.nn.Module) -> Callable[[Image.Image], torch.Tensor]:
        """Image → (3, H, W), as `model` wants it."""
        import open_clip

        return open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )

    def tokenizer(self) -> Callable[[list[str]], torch.Tensor]:
        """Prompts → (B, context) token ids, cut at the context length."""
        import open_clip

        return open_clip.get_tokenizer(self.name)

    def _download(self, open_clip: Any) -> torch.nn.Module:
        tag = open_clip.get_pretrained_cfg(self.name, self.weights) if self.weights else {}
        try:
            return open_clip.create_model(
                self.name,
                pretrained=self.weights,
                require_pretrained=True,  # open_clip would go on with random weights
                force_quick_gelu=bool(tag.get("quick_gelu")),  # it would only warn of another activation
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"weights {self.weights or self.name!r} of model {self.name!r} cannot be had: {reason_of(error)}. "
                "Without a network, name a local weight file."
            ) from error

    def _weight_file(self, tags: list[str]) -> Path:
        if self.weights is not None:
            path = user_path(self.weights)
            if not path.is_file() and path.suffix not in WEIGHT_SUFFIXES and len(path.parts) == 1:
                listed = ", ".join(tags) or "none"
                raise UserError(
                    f"weights {self.weights!r} is neither a file nor a tag of {self.name!r}; its tags: {listed}."
                    f"{did_you_mean(self.weights, tags)}"
                )
            return path
        if not self.name.startswith(_LOCAL_DIR):
            raise UserError(f"weights is null, but {self.name!r} has no weights of its own; name a tag or a file.")
        folder = Path(self.name.removeprefix(_LOCAL_DIR))
        files = [folder / name for name in _FOLDER_WEIGHTS]
        return next((file for file in files if file.is_file()), files[0])

    def look(self, open_clip: Any, tags: list[str]) -> dict[str, Any]:
        """Preprocessing (and activation) that go with a local file of a named architecture."""
        if self.weights_like is not None:
            if self.weights_like not in tags:
                hint = did_you_mean(self.weights_like, tags)
                raise UserError(f"weights_like {self.weights_like!r} is not a tag of {self.name!r}.{hint}")
            tags = [self.weights_like]
        looks = [open_clip.get_pretrained_cfg(self.name, tag) for tag in tags]
        looks = [{key: look[key] for key in (*_PREPROCESSING, "quick_gelu") if look.get(key)} for look in looks]
        if any(look != looks[0] for look in looks):
            logger.warning(
                "weights of %r differ in image preprocessing or activation; %s is used with open_clip's defaults. Name "
                "the tag that it equals in them by weights_like, one of: %s.",
                self.name,
                self.weights,
                ", ".join(tags),
            )
            return {}
        return dict(looks[0]) if looks else {}


def _as_open_clip(open_clip: Any, model: torch.nn.Module, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Older layouts of the same weights, under the names and shapes that the model has today."""
    if "positional_embedding" in found and not hasattr(model, "positional_embedding"):
        found = open_clip.model.convert_to_custom_text_state_dict(found)
    expected = model.state_dict()
    for name in ("logit_scale", "logit_bias"):  # saved as () or as (1,)
        if name in found and name in expected and found[name].numel() == 1:
            found = {**found, name: found[name].reshape(expected[name].shape)}
    position_ids = "text.transformer.embeddings.position_ids"  # dropped by transformers 4.31
    return {name: value for name, value in found.items() if name != position_ids or name in expected}


@contextmanager
def _without_warning(text: str) -> Iterator[None]:
    """Drops what the root logger would say that contains `text`."""

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
