"""The checkpoint folder (docs/checkpoint-format.md, 1): find it, check it, load from it strictly, write one beside its
source.

<checkpoint>/
  config.json  *.safetensors  generation_config.json     AR model
  tokenizer.json … preprocessor_config.json …             processor
  bsq_encoder/  sd3_transformer/  sd3_pipeline/           visual decoder
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from uniar.errors import UserError
from uniar.reading.files import HUB_ID, read_object, reason_of, user_path
from uniar.shipped_files import shipped_model
from uniar.weight_files import DIFFUSERS, MODEL, stored_tensors, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object

DECODER_PARTS = ("bsq_encoder", "sd3_transformer", "sd3_pipeline")
"""Folders that the visual decoder needs. Training never changes them."""

# part → (a file it must have, the diffusers class that this file must name, what its weights are called)
_DECODER_FILES = {
    "bsq_encoder": ("config.json", None, MODEL),
    "sd3_transformer": ("config.json", "SD3Transformer2DModelWithSigLIP", DIFFUSERS),
    "sd3_pipeline/vae": ("config.json", "AutoencoderKL", DIFFUSERS),
    "sd3_pipeline/scheduler": ("scheduler_config.json", "FlowMatchEulerDiscreteScheduler", None),
    "sd3_pipeline/text_encoder": ("config.json", None, MODEL),
    "sd3_pipeline/text_encoder_2": ("config.json", None, MODEL),
    "sd3_pipeline/text_encoder_3": ("config.json", None, MODEL),
    "sd3_pipeline/tokenizer": ("tokenizer_config.json", None, None),
    "sd3_pipeline/tokenizer_2": ("tokenizer_config.json", None, None),
    "sd3_pipeline/tokenizer_3": ("tokenizer.json", None, None),
}
_PROCESSOR_FILES = {
    "tokenizer.json": lambda file: Tokenizer.from_file(str(file)),
    "tokenizer_config.json": lambda file: AutoTokenizer.from_pretrained(file.parent),
    "preprocessor_config.json": lambda file: AutoImageProcessor.from_pretrained(file.parent),
}
# What training writes anew or leaves behind, and weights under any other name.
_MODEL_FILES = {"config.json", "generation_config.json", "trainer_state.json"}
_WEIGHT_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")


def resolve_checkpoint(path: str | Path) -> Path:
    """A folder as it is; "tiny", or its place in a clone: UniAR-Tiny; a hub id ("owner/name") downloaded to the hub's
    cache. Raises UserError for none of them: what cannot be a hub id, because it begins with a folder that is here or
    has another form, is not asked for."""
    folder, name = user_path(path), str(path)
    if (comes_along := shipped_model(name)) is not None:
        return comes_along
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{path} is a file; name the checkpoint folder that it is in.")
    if not HUB_ID.fullmatch(name) or ".." in name or Path(name.split("/")[0]).exists():
        raise UserError(f"there is no checkpoint folder {path}; name a folder, or a hub id such as owner/name.")
    try:
        return Path(snapshot_download(name))
    except GatedRepoError as error:
        raise UserError(
            f"the hub gives {path} to those who have accepted its terms and logged in (hf auth login)."
        ) from error
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"there is no folder {path}, and no model of that name on the hub that you may read."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, HTTPError) as error:
        raise UserError(
            f"there is no folder {path}; as a hub id it is not in the cache, and the hub could not be asked for it."
        ) from error


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Whatever a library raises over a checkpoint's files, as a UserError that begins with `what`: they name neither
    the file nor what they all can raise."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{what}: {reason_of(error)}.") from error


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint. Raises UserError where its files make none."""
    require_processor_parts(folder)
    for name, load in _PROCESSOR_FILES.items():  # one by one, so that an error names the file
        if (folder / name).is_file():
            read_object(folder / name)
            with refusals(f"{folder / name} does not load"):
                load(folder / name)
    with refusals(f"{folder} holds no processor that loads"):
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The decoder's scheduler. Raises UserError for a configuration that makes none, or one without steps."""
    with refusals(f"{folder / 'scheduler_config.json'} does not describe a scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
        mu = {"mu": 1.0} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(2, **mu)
        return scheduler


def require_processor_parts(folder: Path) -> None:
    """Raises UserError where no vocabulary is there, or no chat template: transformers makes a tokenizer of nothing, to
    which every prompt is empty."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder} has neither tokenizer.json nor {name}; a tokenizer needs tokenizer.json, or vocab.json "
                    "and merges.txt."
                )
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    for name in ("tokenizer_config.json", "processor_config.json"):
        file = folder / name
        if file.is_file() and '"chat_template"' in file.read_text(encoding="utf-8", errors="replace"):
            return
    raise UserError(f"{folder} has no chat_template.jinja (or chat_template.json), which prompts are put into.")


def require_parts(folder: Path, *, decoder: bool) -> None:
    """Raises UserError naming the first part of the layout that `folder` lacks."""
    try:
        _require_parts(folder, decoder)
    except UserError as error:
        if not (folder / "trainer_state.json").is_file():
            raise
        advice = f"`uniar-rl export {folder} --output FOLDER` makes a checkpoint of it"
        raise UserError(f"{folder} is what a run goes on from, not a whole checkpoint; {advice} ({error})") from error


def _require_parts(folder: Path, decoder: bool) -> None:
    _refuse_adapter(folder)
    required = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
    for name in required:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; a UniAR checkpoint needs {', '.join(required)} and the weights.")
    stored_tensors(folder)
    if decoder:
        require_decoder_parts(folder)
    require_processor_parts(folder)


def require_decoder_parts(folder: Path) -> None:
    """Raises UserError for the first part of the visual decoder that is missing or of another kind."""
    for part, (file_name, class_name, weights) in _DECODER_FILES.items():
        file = folder / part / file_name
        if not file.is_file():
            raise UserError(f"{folder} has no {part}/{file_name}, which the visual decoder needs.")
        if class_name is not None and (found := read_object(file).get("_class_name")) != class_name:
            raise UserError(f"{file} says _class_name {found!r}; it must be {class_name!r}.")
        if weights is not None:
            stored_tensors(file.parent, weights)


def decoder_weight_files(folder: Path) -> list[Path]:
    """The weights of all parts of the visual decoder. Raises UserError as `weight_files` does."""
    parts = [(part, weights) for part, (_, _, weights) in _DECODER_FILES.items() if weights is not None]
    return [file for part, weights in parts for file in weight_files(folder / part, weights)]


def copy_untrained_parts(source: Path, target: Path, replaced: Path | None = None) -> None:
    """Copies what training leaves alone (processor files and decoder folders), byte for byte. replaced: an earlier
    copy that `target` takes the place of, on the same disk; those of its files that are still the source's go on."""
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            if entry.name in DECODER_PARTS:
                before = None if replaced is None else replaced / entry.name
                copy = partial(_copy, tops=(entry, before))
                shutil.copytree(entry, target / entry.name, copy_function=copy, dirs_exist_ok=True)
        elif not (entry.name in _MODEL_FILES or entry.name.startswith(".") or entry.name.endswith(_WEIGHT_ENDINGS)):
            shutil.copyfile(entry, target / entry.name)


def _copy(source: str, target: str, tops: tuple[Path, Path | None]) -> None:
    """A file of the decoder, 15 GB with its text encoders. Where a file system can share blocks between files (XFS,
    Btrfs) or copy by itself (NFS), the kernel has it do so; a link to the source would change the source when somebody
    changes the copy. tops: the source's folder, and the same of a copy of before: the same file there, told by size and
    time, is linked, as it is about to lose its other name."""
    top, before = tops
    if before is not None and _unchanged(earlier := before / Path(source).relative_to(top), Path(source)):
        Path(target).unlink(missing_ok=True)
        os.link(earlier, target)
        return
    with open(source, "rb") as reading, open(target, "wb") as writing:
        with suppress(OSError, AttributeError):  # another disk, an old kernel, no Linux
            while os.copy_file_range(reading.fileno(), writing.fileno(), 2**30):
                pass
        shutil.copyfileobj(reading, writing, 2**24)  # what is left
    shutil.copystat(source, target)


def _unchanged(copy: Path, source: Path) -> bool:
    if not copy.is_file() or copy.is_symlink():
        return False
    one, other = copy.stat(), source.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


class StrictLoading(_Model):
    """For a PreTrainedModel: `from_pretrained` that never leaves a tensor at its random initial value.

    Raises UserError for a config of another model type, for a missing, left-over or mismatched tensor (by name), for a
    damaged file, and for flash_attention_2 where flash-attn is not installed.
    """

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        wants_info = kwargs.pop("output_loading_info", False)
        folder = Path(path, kwargs.get("subfolder", ""))
        if folder.is_dir():
            require_model_type(folder, cls.config_class.model_type)
        try:
            with refusals(f"{folder} cannot be loaded"):
                model, info = super().from_pretrained(
                    path, *args, **{**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
                )
        except UserError as error:
            if not isinstance(error.__cause__, ImportError) or "flash" not in str(error).lower():
                raise
            raise UserError(
                "flash_attention_2 was asked for and flash-attn is not installed; install it with "
                "`pip install 'uniar-rl[flash]'` or use sdpa."
            ) from error
        require_exact_tensors(folder, model, info)
        if wants_info:
            return model, info  # type: ignore[return-value]  # as transformers does for this argument
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """transformers' own, which must not rename: under ZeRO-3 it would undo a renaming that loading never did."""
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})


def require_model_type(folder: Path, expected: str) -> None:
    """Raises UserError unless `folder` has weights and the config of a model of type `expected`."""
    _refuse_adapter(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder} has no config.json.")
    found = read_object(config_file).get("model_type")
    if found != expected:
        raise UserError(f"{config_file} says model_type {found!r}; it must be {expected!r}.")
    stored_tensors(folder)


def _refuse_adapter(folder: Path) -> None:
    """transformers would load the model that an adapter names, whatever weights lie beside it."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} has an adapter_config.json: it holds an adapter, not a whole model; `uniar-rl export` with "
            "--source merges it into its own."
        )


def require_exact_tensors(source: Path | str, model: nn.Module, info: dict[str, Any], *, whole: bool = True) -> None:
    """Raises UserError for a tensor that `from_pretrained` made up, or that belongs nowhere.

    Args:
        source: where the weights came from, for messages.
        info: what `output_loading_info=True` returned, with `ignore_mismatched_sizes=True`.
        whole: false lets buffers be missing and tensors be left over, as between versions of a library.
    """
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise UserError(f"{source}: tensor {name} has shape {tuple(found)}; the config makes it {tuple(expected)}.")
    tensors = model.state_dict() if whole else dict(model.named_parameters())
    if missing := sorted(name for name in info["missing_keys"] if whole or name in tensors):
        tensor = tensors[missing[0]]
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # under ZeRO-3 its own is that of a share
        fault = f"is missing from the weights{_and_more(missing)}; the config makes it {shape}"
        raise UserError(f"{source}: tensor {missing[0]} {fault}.")
    if whole and (left := sorted(info["unexpected_keys"])):
        raise UserError(f"{source}: tensor {left[0]} belongs to no module{_and_more(left)}.")


def _and_more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
