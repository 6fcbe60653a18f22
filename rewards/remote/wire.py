"""What a client of a reward server sends: JSON, with images as PNG or JPEG bytes in base64. wire_answers.py has what it
gets back.

A request, POST /v1/score:

    {"samples": [{"prompt": "a red kettle", "image": "iVBORw0…", "task": "color", "metadata": {"color": "red"},
                  "bits": {"shape": [T, L, S, K], "packed": "…"}, "source_images": ["iVBORw0…"], "texts": ["red"]}],
     "rewards": ["color", "ocr"]}

`prompt` is required, and `image` for rewards that look at one; `rewards` defaults to all that are served. `packed` is
base64 of the bits in C order, eight to a byte, the first in the highest place. `source_images` are the pictures that an
edit began with, `texts` what the sample wrote.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.remote.wire_answers import shown
from rewards.remote.wire_images import (
    BYTES_PER_PIXEL,
    SCORING_BYTES_PER_PIXEL,
    BadRequest,
    Limits,
    decode_image,
    decoding_bytes,
    encode_image,
    open_image,
)
from uniar.errors import did_you_mean

_SAMPLE_KEYS = ("prompt", "image", "task", "metadata", "bits", "source_images", "texts")
_REQUEST_KEYS = ("samples", "rewards")


@dataclass(frozen=True)
class ScoreRequest:
    """A request as the server reads it: B samples, and the rewards that are to score them."""

    batch: RewardBatch
    rewards: tuple[str, ...]

    @property
    def batch_bytes(self) -> int:
        """That the images take, and the bits, twice: once more with those of other requests in one batch."""
        bits = 0 if self.batch.bits is None else self.batch.bits.numel()
        return BYTES_PER_PIXEL * sum(map(_pixels, _images(self.batch))) + 2 * bits

    @property
    def scoring_bytes(self) -> int:
        """That scoring takes for a moment, of the largest image."""
        return SCORING_BYTES_PER_PIXEL * max(map(_pixels, _images(self.batch)), default=0)


def encode_request(batch: RewardBatch, rewards: Sequence[str], send_bits: bool = False) -> bytes:
    """The body of a request. Raises BadRequest for a sample that JSON has no form for, such as a NaN in its metadata:
    a null in that place would be another sample."""
    samples = []
    for row in range(len(batch)):
        sample = {"prompt": batch.prompts[row], "task": batch.tasks[row], "metadata": dict(batch.metadata[row])}
        try:
            if batch.images[row] is not None:
                sample["image"] = _sent(batch.images[row])
            if batch.source_images[row]:
                sample["source_images"] = [_sent(image) for image in batch.source_images[row]]
        except (OSError, ValueError) as error:
            raise BadRequest(f"an image of sample {row} cannot be sent as PNG: {error}.") from error
        if batch.texts[row]:
            sample["texts"] = list(batch.texts[row])
        if send_bits and batch.bits is not None:
            bits_TLSK = batch.bits[row].cpu().numpy()
            packed = base64.b64encode(np.packbits(bits_TLSK.reshape(-1)).tobytes()).decode("ascii")
            sample["bits"] = {"shape": list(bits_TLSK.shape), "packed": packed}
        for key, value in sample["metadata"].items():
            try:
                _json(key), _json(value)
            except (TypeError, ValueError, RecursionError) as error:
                said = f"metadata {shown(key)} of sample {row} cannot be sent as JSON: {error}."
                raise BadRequest(said) from error
        samples.append(sample)
    return _json({"samples": samples, "rewards": list(rewards)}).encode("ascii")


def _sent(image: Image.Image) -> str:
    return base64.b64encode(encode_image(image)).decode("ascii")


def _images(batch: RewardBatch) -> list[Image.Image]:
    """All of them, those that edits began with too."""
    drawn = [image for image in batch.images if image is not None]
    return drawn + [image for sources in batch.source_images for image in sources]


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _json(value: Any) -> str:
    """Strictly JSON; arrays, tensors and their numbers as lists and numbers."""
    return json.dumps(value, allow_nan=False, default=_listed)


def _listed(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"a {type(value).__name__} has no form in it")
    return value.tolist()


def read_request(
    body: bytes | bytearray, known: Sequence[str], limits: Limits, admit: Callable[[int], None] = lambda count: None
) -> ScoreRequest:
    """The request in a body, checked from the cheap to the costly: sizes of all images before the first is decoded.

    A bytearray is emptied on the way, to spare its memory. `admit` is told how many bytes the images and bits will
    take, before they do, and may refuse. Raises BadRequest, which names the sample and what is wrong with it.
    """
    content = _mapping(_parse(body, limits), "the request", _REQUEST_KEYS)
    samples = content.get("samples")
    if not isinstance(samples, list) or not samples:
        raise BadRequest(f"samples is {shown(samples)}; a list with at least one sample is needed.")
    if len(samples) > limits.samples:
        raise BadRequest(f"the request has {len(samples)} samples; at most {limits.samples} are taken.", 413)
    rewards = _rewards(content.get("rewards"), known)
    places = [f"samples[{row}]" for row in range(len(samples))]
    for sample, where in zip(samples, places, strict=True):
        _mapping(sample, where, _SAMPLE_KEYS)
    prompts = [_prompt(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    tasks = [_task(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    metadata = [_metadata(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    texts = [_texts(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    shape, packed = _packed_bits(samples, limits)
    files: dict[str, bytes] = {}
    sources = []
    for sample, where in zip(samples, places, strict=True):
        if (image := sample.pop("image", None)) is not None:
            files[f"{where}.image"] = _base64(image, f"{where}.image")
        given = _list(sample.pop("source_images", None), f"{where}.source_images", limits)
        if image is None and not sample.get("texts"):
            raise BadRequest(f"{where} has no image and no texts; one of them is needed.")
        sources.append([f"{where}.source_images[{number}]" for number in range(len(given))])
        files |= {place: _base64(image, place) for place, image in zip(sources[-1], given, strict=True)}
    opened = _opened(files, limits)
    own = sum(map(len, files.values())) + sum(map(len, packed)) + 2 * len(packed) * math.prod(shape)
    own += BYTES_PER_PIXEL * sum(map(_pixels, opened.values()))
    admit(own + max(map(decoding_bytes, opened.values()), default=0))
    del files
    # Each is let go when its pixels are there.
    images = {place: decode_image(opened.pop(place), place) for place in list(opened)}
    batch = RewardBatch(
        prompts,
        [images.get(f"{where}.image") for where in places],
        tasks,
        metadata,
        _bits(shape, packed),
        [[images[place] for place in row] for row in sources],
        texts,
    )
    return ScoreRequest(batch, rewards)


def _parse(body: bytes | bytearray, limits: Limits) -> Any:
    # Every JSON value but the first follows one of these bytes, none of which base64 has.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.json_values:
        raise BadRequest(f"the body has more than the {limits.json_values} JSON values that are taken.", 413)
    try:
        text = body.decode("utf-8")
        if isinstance(body, bytearray):
            body.clear()
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest("the body is JSON nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON in UTF-8: {error}.") from None  # the error holds the body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _mapping(value: Any, where: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is {shown(value)}; an object with the keys {', '.join(keys)} is needed.")
    for key in value:
        if key not in keys:
            raise BadRequest(f"{where} has the unknown key {shown(key)}.{did_you_mean(key[:40], keys)}")
    return value


def _rewards(named: Any, known: Sequence[str]) -> tuple[str, ...]:
    if named is None:
        return tuple(known)
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise BadRequest(f"rewards is {shown(named)}; a list of names is needed.")
    for name in named:
        if name not in known:
            hint = did_you_mean(name[:40], known)
            raise BadRequest(f"reward {shown(name)} is not served here; served: {', '.join(known)}.{hint}")
    if len(set(named)) < len(named):
        raise BadRequest(f"rewards is {shown(named)}; each name is needed once.")
    return tuple(named)


def _prompt(sample: Mapping[str, Any], where: str, limits: Limits) -> str:
    if not isinstance(sample.get("prompt"), str):
        raise BadRequest(f"{where}.prompt is {shown(sample.get('prompt'))}; a string is needed.")
    return _text(sample["prompt"], f"{where}.prompt", limits.prompt_characters)


def _task(sample: Mapping[str, Any], where: str, limits: Limits) -> str | None:
    task = sample.get("task")
    if task is None:
        return None
    if not isinstance(task, str):
        raise BadRequest(f"{where}.task is {shown(task)}; a string or null is needed.")
    return _text(task, f"{where}.task", limits.prompt_characters)


def _metadata(sample: Mapping[str, Any], where: str, limits: Limits) -> dict[str, Any]:
    metadata = sample.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise BadRequest(f"{where}.metadata is {shown(metadata)}; an object is needed.")
    try:
        _text(json.dumps(metadata, ensure_ascii=False), f"{where}.metadata", limits.metadata_characters)
    except RecursionError:
        raise BadRequest(f"{where}.metadata is nested too deeply.") from None
    return metadata


def _texts(sample: Mapping[str, Any], where: str, limits: Limits) -> list[str]:
    texts = _list(sample.get("texts"), f"{where}.texts", limits)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"{where}.texts[{number}] is {shown(text)}; a string is needed.")
        _text(text, f"{where}.texts[{number}]", limits.prompt_characters)
    return texts


def _list(value: Any, where: str, limits: Limits) -> list[Any]:
    """A list that may be missing, of at most as many items as a request has samples."""
    if not isinstance(value, list | None):
        raise BadRequest(f"{where} is {shown(value)}; a list is needed.")
    if len(value or []) > limits.samples:
        raise BadRequest(f"{where} has {len(value or [])} items; at most {limits.samples} are taken.", 413)
    return value or []


def _text(text: str, where: str, most: int) -> str:
    if len(text) > most:
        raise BadRequest(f"{where} has {len(text)} characters; at most {most} are taken.", 413)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where} has half of a surrogate pair, which is not a character.") from error
    return text


def _base64(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise BadRequest(f"{where} is {shown(value)}; base64 in a string is needed.")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise BadRequest(f"{where} is not base64: {str(error).rstrip('.')}.") from error


def _packed_bits(samples: Sequence[dict[str, Any]], limits: Limits) -> tuple[list[int], list[bytes]]:
    """The shape (T, L, S, K) that all samples' bits have, and each one's, eight to a byte; none where no sample has."""
    given = [sample.pop("bits", None) for sample in samples]
    if all(bits is None for bits in given):
        return [], []
    rows, shape = [], None
    for row, bits in enumerate(given):
        where = f"samples[{row}].bits"
        if bits is None:
            raise BadRequest(f"{where} is missing, though other samples of the request have bits.")
        _mapping(bits, where, ("shape", "packed"))
        shape = shape or bits.get("shape")
        if not _is_shape(bits.get("shape"), limits.bits):
            raise BadRequest(
                f"{where}.shape is {shown(bits.get('shape'))}; four whole numbers T, L, S and K above 0, together at "
                f"most {limits.bits} bits, are needed."
            )
        if bits["shape"] != shape:
            raise BadRequest(f"{where}.shape is {bits['shape']}, that of the first sample {shape}; they must be equal.")
        packed, count = _base64(bits.pop("packed", None), f"{where}.packed"), math.prod(shape)
        if len(packed) != math.ceil(count / 8):
            raise BadRequest(f"{where}.packed has {len(packed)} bytes; the shape {shape} needs {math.ceil(count / 8)}.")
        rows.append(packed)
    return shape, rows


def _bits(shape: Sequence[int], packed: Sequence[bytes]) -> torch.Tensor | None:
    """(B, T, L, S, K) uint8, or None where no sample has bits."""
    if not packed:
        return None
    bits_BN = np.empty((len(packed), math.prod(shape)), dtype=np.uint8)
    for row, data in enumerate(packed):
        bits_BN[row] = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=bits_BN.shape[1])
    return torch.from_numpy(bits_BN.reshape(len(packed), *shape))


def _is_shape(shape: Any, most: int) -> bool:
    if not isinstance(shape, list) or len(shape) != 4:
        return False
    whole = all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= most for size in shape)
    return whole and math.prod(shape) <= most


def _opened(files: Mapping[str, bytes], limits: Limits) -> dict[str, Image.Image]:
    opened = {where: open_image(data, where, limits) for where, data in files.items()}
    pixels = sum(map(_pixels, opened.values()))
    if pixels > limits.request_pixels:
        raise BadRequest(
            f"the images have {pixels} pixels together; at most {limits.request_pixels} are taken in a request.", 413
        )
    return opened
