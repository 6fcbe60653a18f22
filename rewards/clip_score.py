"""`clip_score`: how well image and prompt agree, by any open_clip model.

CLIPScore (Hessel et al. 2021, arXiv:2104.08718) without its factor 2.5 and its cut at 0.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from rewards.base import Reward, RewardBatch
from rewards.weights import check_weights, read_weights
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_LOCAL_DIR, _HUB = "local-dir:", "hf-hub:"
_FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # as open_clip saves them
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class ClipScore(Reward):
    """scale · cos(image, prompt), the cosine taken in float32. Prompts are cut at the model's context length.

    Args:
        model: an open_clip architecture ("ViT-L-14"), "hf-hub:owner/name", or "local-dir:path" (a folder with
            open_clip_config.json).
        weights: an open_clip tag ("openai", "laion2b_s32b_b82k") or a local weight file. null for "hf-hub:", which
            brings its own, and for the file that open_clip itself saves in a "local-dir:".
        weights_like: for a local file of a named architecture, the tag it equals in image preprocessing and activation.
            null takes what all tags of the architecture have in common, or, where they differ, open_clip's defaults,
            with a warning.
        scale: 1 for the cosine, 100 for CLIP's usual logits.
        batch_size: images encoded at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for what does not exist or does not fit together; for weights when they are loaded.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        weights: str | None = "openai",
        weights_like: str | None = None,
        scale: float = 1.0,
        batch_size: int = 32,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; at least 1 is needed.")
        if model.startswith(_HUB) and weights is not None:
            raise UserError(f"weights is {weights!r}, but {model!r} brings its own; write weights: null.")
        self.model_name, self.weights, self.weights_like = model, weights, weights_like
        self.scale, self.batch_size, self.dtype = scale, batch_size, getattr(torch, dtype)
        try:
            self._own_device = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device is {device!r}; 'cpu', 'cuda' or 'cuda:N' is needed.") from error
        self._device = self._own_device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: torch.nn.Module | None = None

    def load(self) -> None:
        if self._model is not None:
            return
        import open_clip

        model = self._build(open_clip)
        self._preprocess = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        self._tokenize = open_clip.get_tokenizer(self.model_name)
        self._model = model.eval().requires_grad_(False).to(self._device, self.dtype)

    def to(self, device: str | torch.device) -> None:
        """Moves the weights. A device of its own, if it has one, stands for any device but the CPU."""
        device = torch.device(device)
        self._device = self._own_device if self._own_device is not None and device.type != "cpu" else device
        if self._model is not None:
            self._model.to(self._device)

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        prompts = list(dict.fromkeys(batch.prompts))  # the samples of a group share theirs
        texts_PD = self._encode(prompts, self._encode_texts)
        images_BD = self._encode(batch.images, self._encode_images)
        texts_BD = texts_PD[[prompts.index(prompt) for prompt in batch.prompts]]
        return self.scale * (images_BD * texts_BD).sum(dim=1)

    @torch.inference_mode()
    def _encode(self, items: list, encode: Any) -> torch.Tensor:
        chunks = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        return torch.cat([torch.nn.functional.normalize(encode(chunk).float(), dim=-1).cpu() for chunk in chunks])

    def _encode_texts(self, prompts: list[str]) -> torch.Tensor:
        return self._model.encode_text(self._tokenize(prompts).to(self._device), normalize=False)

    def _encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        pixels_BCHW = torch.stack([self._preprocess(image) for image in images])
        return self._model.encode_image(pixels_BCHW.to(self._device, self.dtype), normalize=False)

    def _build(self, open_clip: Any) -> torch.nn.Module:
        named = not self.model_name.startswith((_LOCAL_DIR, _HUB))
        if named and self.model_name not in open_clip.list_models():
            hint = did_you_mean(self.model_name, open_clip.list_models())
            raise UserError(f"model {self.model_name!r} is not an architecture that open_clip knows.{hint}")
        tags = open_clip.list_pretrained_tags_by_model(self.model_name) if named else []
        if self.model_name.startswith(_HUB) or self.weights in tags:
            return self._download(open_clip)
        path = self._weight_file(tags)
        found = read_weights(path)
        look = self._look(open_clip, tags)
        quick_gelu = look.pop("quick_gelu", False)
        try:
            with _without_warning("initialized randomly"):  # the weights come next
                model = open_clip.create_model(
                    self.model_name,
                    load_weights=False,
                    pretrained_text=False,
                    force_quick_gelu=quick_gelu,
                    force_preprocess_cfg=look,
                )
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise UserError(f"model {self.model_name!r} cannot be built: {error}") from error
        found = _as_open_clip(open_clip, model, found)
        check_weights(path, found, model, f"open_clip's {self.model_name!r}")
        model.load_state_dict(found)
        return model

    def _download(self, open_clip: Any) -> torch.nn.Module:
        tag = open_clip.get_pretrained_cfg(self.model_name, self.weights) if self.weights else {}
        try:
            return open_clip.create_model(
                self.model_name,
                pretrained=self.weights,
                require_pretrained=True,  # open_clip would go on with random weights
                force_quick_gelu=bool(tag.get("quick_gelu")),  # it would only warn of another activation
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise UserError(
                f"weights {self.weights or self.model_name!r} of model {self.model_name!r} cannot be had: {reason}. "
                "Without a network, name a local weight file."
            ) from error

    def _weight_file(self, tags: list[str]) -> Path:
        if self.weights is not None:
            path = Path(self.weights).expanduser()
            if not path.is_file() and path.suffix not in _SUFFIXES and len(path.parts) == 1:
                listed = ", ".join(tags) or "none"
                raise UserError(
                    f"weights {self.weights!r} is neither a file nor a tag of {self.model_name!r}; its tags: {listed}."
                    f"{did_you_mean(self.weights, tags)}"
                )
            return path
        if not self.model_name.startswith(_LOCAL_DIR):
            raise UserError(
                f"weights is null, but {self.model_name!r} has no weights of its own; name a tag or a file."
            )
        folder = Path(self.model_name.removeprefix(_LOCAL_DIR))
        files = [folder / name for name in _FOLDER_WEIGHTS]
        return next((file for file in files if file.is_file()), files[0])

    def _look(self, open_clip: Any, tags: list[str]) -> dict[str, Any]:
        """Preprocessing (and activation) that go with a local file of a named architecture."""
        if self.weights_like is not None:
            if self.weights_like not in tags:
                hint = did_you_mean(self.weights_like, tags)
                raise UserError(f"weights_like {self.weights_like!r} is no tag of {self.model_name!r}.{hint}")
            tags = [self.weights_like]
        looks = [open_clip.get_pretrained_cfg(self.model_name, tag) for tag in tags]
        looks = [{key: look[key] for key in (*_PREPROCESSING, "quick_gelu") if look.get(key)} for look in looks]
        if any(look != looks[0] for look in looks):
            logger.warning(
                "weights of %r differ in image preprocessing or activation; %s is used with open_clip's defaults. Name "
                "the tag that it equals in them by weights_like, one of: %s.",
                self.model_name,
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
