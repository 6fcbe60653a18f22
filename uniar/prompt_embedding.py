"""What the text encoders make of the decoder's one prompt: computed once, then kept in the user's cache folder, so that
T5-XXL (9.5 GB) is not loaded for it by every process at every start.

    <cache>/prompt_embeddings/<key>.safetensors            2.7 MB of the released model

The key is made of all that the embedding depends on: the encoders' weights and configs, the tokenizers, the code that
makes it, the type, the kind of device and the versions of libraries. A damaged file is written anew; where none can be
written, the encoders are loaded each time.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uniar import decoder_parts
from uniar.decoder_parts import TEXT_ENCODERS, TOKENIZERS, encode_prompt
from uniar.fingerprint import fingerprint
from uniar.reading.files import remove_unfinished, write_whole
from uniar.reading.machine import cache_folder
from uniar.weight_files import weight_files

_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
_LIBRARIES = ("torch", "transformers", "diffusers", "tokenizers")


def constant_prompt(pipeline: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`encode_prompt`, of which the encoders are loaded only where nothing is kept. The same bits either way."""
    device = torch.device(device)
    file = _file(pipeline, device, dtype)
    found = None if file is None else _read(file)
    if found is None:
        found = encode_prompt(pipeline, device, dtype)
        if file is not None:
            _keep(file, found)
    embeds, pooled = (tensor.to(device) for tensor in found)
    return embeds, pooled


def _file(pipeline: Path, device: torch.device, dtype: torch.dtype) -> Path | None:
    """None for a user without a cache folder."""
    if (cache := cache_folder()) is None:
        return None
    weights = [file for name in TEXT_ENCODERS for file in weight_files(pipeline / name)]
    small = [file for name in (*TEXT_ENCODERS, *TOKENIZERS) for file in (pipeline / name).iterdir() if file.is_file()]
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    told = {
        "weights": fingerprint(pipeline, weights),
        "files": {
            str(file.relative_to(pipeline)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(small)
            if file.suffix in (".json", ".txt", ".model", ".jinja")
        },
        "code": hashlib.sha256(Path(decoder_parts.__file__).read_bytes()).hexdigest(),
        "dtype": str(dtype),
        "device": [device.type, processor],
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
    return cache / "prompt_embeddings" / f"{key}.safetensors"


def _read(file: Path) -> tuple[Tensor, Tensor] | None:
    """None where the file is not there, or is not what was written."""
    try:
        with safe_open(file, "pt") as content:
            embeds, pooled = (content.get_tensor(name) for name in _NAMES)
            written = (content.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return (embeds, pooled) if written == _digest((embeds, pooled)) else None


def _keep(file: Path, tensors: Iterable[Tensor]) -> None:
    tensors = [tensor.cpu().contiguous() for tensor in tensors]
    content = save(dict(zip(_NAMES, tensors, strict=True)), {"sha256": _digest(tensors)})
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(file.parent, "*.safetensors")
        write_whole(file, content)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
