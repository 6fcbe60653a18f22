"""What travels between a reward server and its clients: JSON, with images as PNG or JPEG bytes in base64.

A request, POST /v1/score:

    {"samples": [{"prompt": "a red kettle", "image": "iVBORw0…", "task": "color", "metadata": {"color": "red"},
                  "bits": {"shape": [T, L, S, K], "packed": "…"}}],
     "rewards": ["color", "ocr"]}

`prompt` and `image` are required, `rewards` defaults to all that are served. `packed` is base64 of the bits in C order,
eight to a byte, the first in the highest place. The answer, in the samples' order:

    {"scores": {"color": [0.81], "ocr": [null]},
     "failures": {"color": {}, "ocr": {}},
     "details": {"color": {}, "ocr": {}}}

A score is null where the reward does not apply, or failed: then `failures` has the sample's index as a string, and why.
"""

import base64
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewards.contract.base import RewardBatch
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

_SAMPLE_KEYS = ("prompt", "image", "task", "metadata", "bits")
_REQUEST_KEYS = ("samples", "rewards")


class BadAnswer(ValueError):
    """A server answered with something from which no scores can be read."""


class ServedFailure(RuntimeError):
    """A reward failed on a sample, at the server or by what the server answered for it."""


@dataclass(frozen=True)
class ScoreRequest:
    """A request as the server reads it: B samples, and the rewards that are to score them."""

    batch: RewardBatch
    rewards: tuple[str, ...]

    @property
    def batch_bytes(self) -> int:
        """That the images take, and the bits, twice: once more with those of other requests in one batch."""
        bits = 0 if self.batch.bits is None else self.batch.bits.numel()
        return BYTES_PER_PIXEL * sum(image.width * image.height for image in self.batch.images) + 2 * bits

    @property
    def scoring_bytes(self) -> int:
        """That scoring takes for a moment, of the largest image."""
        return SCORING_BYTES_PER_PIXEL * max(image.width * image.height for image in self.batch.images)


@dataclass
class Column:
    """One reward's results for B samples: scores (NaN: none), and by sample, why it failed and what else it said."""

    scores: list[float]
    failures: dict[int, str] = field(default_factory=dict)
    details: dict[int, Mapping[str, Any]] = field(default_factory=dict)


# Requests ------------------------------------------------------------------------------------------------------------


def encode_request(batch: RewardBatch, rewards: Sequence[str], send_bits: bool = False) -> bytes:
    """The body of a request. Raises BadRequest for a sample that JSON has no form for, such as a NaN in its metadata:
    a null in that place would be another sample."""
    samples = []
    for row in range(len(batch)):
        try:
            image = base64.b64encode(encode_image(batch.images[row])).decode("ascii")
        except (OSError, ValueError) as error:
            raise BadRequest(f"the image of sample {row} cannot be sent as PNG: {error}.") from error
        sample = {
            "prompt": batch.prompts[row],
            "image": image,
            "task": batch.tasks[row],
            "metadata": dict(batch.metadata[row]),
        }
        if send_bits and batch.bits is not None:
            bits_TLSK = batch.bits[row].cpu().numpy()
            packed = base64.b64encode(np.packbits(bits_TLSK.reshape(-1)).tobytes()).decode("ascii")
            sample["bits"] = {"shape": list(bits_TLSK.shape), "packed": packed}
        for key, value in sample["metadata"].items():
            try:
                _json(key), _json(value)
            except (TypeError, ValueError, RecursionError) as error:
                said = f"metadata {_shown(key)} of sample {row} cannot be sent as JSON: {error}."
                raise BadRequest(said) from error
        samples.append(sample)
    return _json({"samples": samples, "rewards": list(rewards)}).encode("ascii")


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
        raise BadRequest(f"samples is {_shown(samples)}; a list with at least one sample is needed.")
    if len(samples) > limits.samples:
        raise BadRequest(f"the request has {len(samples)} samples; at most {limits.samples} are taken.", 413)
    rewards = _rewards(content.get("rewards"), known)
    places = [f"samples[{row}]" for row in range(len(samples))]
    for sample, where in zip(samples, places, strict=True):
        _mapping(sample, where, _SAMPLE_KEYS)
    prompts = [_prompt(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    tasks = [_task(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    metadata = [_metadata(sample, where, limits) for sample, where in zip(samples, places, strict=True)]
    shape, packed = _packed_bits(samples, limits)
    files = [
        _base64(sample.pop("image", None), f"{where}.image") for sample, where in zip(samples, places, strict=True)
    ]
    opened = _opened(files, limits)
    own = sum(map(len, files)) + sum(map(len, packed)) + 2 * len(packed) * math.prod(shape)
    own += BYTES_PER_PIXEL * sum(image.width * image.height for image in opened)
    admit(own + max(map(decoding_bytes, opened)))
    del files
    bits, images = _bits(shape, packed), []
    while opened:  # each is let go when its pixels are there
        images.append(decode_image(opened.pop(0), f"samples[{len(images)}].image"))
    return ScoreRequest(RewardBatch(prompts, images, tasks, metadata, bits), rewards)


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
        raise BadRequest(f"{where} is {_shown(value)}; an object with the keys {', '.join(keys)} is needed.")
    for key in value:
        if key not in keys:
            raise BadRequest(f"{where} has the unknown key {_shown(key)}.{did_you_mean(key[:40], keys)}")
    return value


def _rewards(named: Any, known: Sequence[str]) -> tuple[str, ...]:
    if named is None:
        return tuple(known)
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise BadRequest(f"rewards is {_shown(named)}; a list of names is needed.")
    for name in named:
        if name not in known:
            hint = did_you_mean(name[:40], known)
            raise BadRequest(f"reward {_shown(name)} is not served here; served: {', '.join(known)}.{hint}")
    if len(set(named)) < len(named):
        raise BadRequest(f"rewards is {_shown(named)}; each name is needed once.")
    return tuple(named)


def _prompt(sample: Mapping[str, Any], where: str, limits: Limits) -> str:
    if not isinstance(sample.get("prompt"), str):
        raise BadRequest(f"{where}.prompt is {_shown(sample.get('prompt'))}; a string is needed.")
    return _text(sample["prompt"], f"{where}.prompt", limits.prompt_characters)


def _task(sample: Mapping[str, Any], where: str, limits: Limits) -> str | None:
    task = sample.get("task")
    if task is None:
        return None
    if not isinstance(task, str):
        raise BadRequest(f"{where}.task is {_shown(task)}; a string or null is needed.")
    return _text(task, f"{where}.task", limits.prompt_characters)


def _metadata(sample: Mapping[str, Any], where: str, limits: Limits) -> dict[str, Any]:
    metadata = sample.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise BadRequest(f"{where}.metadata is {_shown(metadata)}; an object is needed.")
    try:
        _text(json.dumps(metadata, ensure_ascii=False), f"{where}.metadata", limits.metadata_characters)
    except RecursionError:
        raise BadRequest(f"{where}.metadata is nested too deeply.") from None
    return metadata


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
        raise BadRequest(f"{where} is {_shown(value)}; base64 in a string is needed.")
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
                f"{where}.shape is {_shown(bits.get('shape'))}; four whole numbers T, L, S and K above 0, together at "
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


def _opened(files: Sequence[bytes], limits: Limits) -> list[Image.Image]:
    opened = [open_image(data, f"samples[{row}].image", limits) for row, data in enumerate(files)]
    pixels = sum(image.width * image.height for image in opened)
    if pixels > limits.request_pixels:
        raise BadRequest(
            f"the images have {pixels} pixels together; at most {limits.request_pixels} are taken in a request.", 413
        )
    return opened


# Answers -------------------------------------------------------------------------------------------------------------


def encode_answer(columns: Mapping[str, Column]) -> bytes:
    """The body of an answer. Details are as `score_samples` leaves them, in JSON's own types."""
    content = {
        "scores": {
            name: [None if math.isnan(score) else score for score in column.scores] for name, column in columns.items()
        },
        "failures": {name: _by_text(column.failures) for name, column in columns.items()},
        "details": {name: _by_text(column.details) for name, column in columns.items()},
    }
    return json.dumps(content, allow_nan=False).encode("ascii")


def read_answer(content: bytes, reward: str, count: int) -> list[Any]:
    """What `Reward.score` returns for `count` samples: a number, None, a mapping with `score` where there are details,
    or a ServedFailure for each sample without a usable score. Raises BadAnswer where not even that can be told.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    scores = _entry(answer, "scores", reward, list)
    if len(scores) != count:
        raise BadAnswer(f"the answer has {len(scores)} scores for {count} samples")
    failures = _entry(answer, "failures", reward, dict)
    details = _entry(answer, "details", reward, dict)
    return [_result(scores[row], failures.get(str(row)), details.get(str(row))) for row in range(count)]


def _entry(answer: Any, key: str, reward: str, kind: type) -> Any:
    rewards = answer.get(key) if isinstance(answer, dict) else None
    entry = rewards.get(reward) if isinstance(rewards, dict) else None
    if not isinstance(entry, kind):
        raise BadAnswer(f"the answer has no {key} of reward {reward!r}: {_shown(answer)}")
    return entry


def _result(score: Any, failure: Any, details: Any) -> Any:
    if failure is not None:
        return ServedFailure(
            failure if isinstance(failure, str) else f"for a reason that is not a string: {_shown(failure)}"
        )
    if score is not None:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        # JSON's integers have no end, a float has: compared, because converting such a one raises.
        if not number or not -sys.float_info.max <= score <= sys.float_info.max:
            return ServedFailure(f"the server answered {_shown(score)}, a finite number or null is needed")
    return score if not isinstance(details, dict) else {**details, "score": score}


def _by_text(entries: Mapping[int, Any]) -> dict[str, Any]:
    return {str(row): entry for row, entry in entries.items()}


def _shown(value: Any) -> str:
    """A value for a message, short however large it is, in characters that can be sent."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
