"""`uniar-rl export`: a training checkpoint → a self-contained folder, a LoRA adapter alone, a hub repository."""

import argparse
from pathlib import Path

from huggingface_hub import HfApi

from rl.checkpoint.folders import checkpoints, fault
from rl.checkpoint.layout import MANIFEST
from rl.checkpoint.tensor_files import main_dtype, parse_size
from rl.export.model_card import model_card, origin_of
from rl.export.verify import verify
from rl.export.writing import export_adapter, export_checkpoint
from rl.policy.evaluated import source_of
from uniar.checkpoint import resolve_checkpoint
from uniar.errors import UserError
from uniar.reading.files import reason_of, require_writable


def run(arguments: argparse.Namespace) -> None:
    checkpoint, output, repository = arguments.checkpoint, arguments.output, arguments.push_to_hub
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is not a folder; name a run's checkpoint-N folder.")
    if saved := checkpoints(checkpoint):
        raise UserError(f"{checkpoint} is a run's folder; name one of its checkpoints, such as {saved[-1]}.")
    if (checkpoint / MANIFEST).is_file() and (wrong := fault(checkpoint)) is not None:
        raise UserError(f"{checkpoint} is damaged: {wrong}.")
    require_writable(output.parent)
    max_shard_size = parse_size(arguments.max_shard_size)
    average = arguments.ema
    origin = origin_of(checkpoint, arguments.source, average=average)
    source = _source(checkpoint, arguments.source)
    for read in (checkpoint, source):
        if read.resolve().is_relative_to(output.resolve()):
            raise UserError(f"the export to {output} would replace {read}, which it reads; choose another folder.")
    dtype = main_dtype(source)
    name = repository or output.name
    base = None
    if arguments.adapter_only:
        # Under a preset's name nobody could load it.
        base = origin.base if origin.recipe is None or origin.recipe.model.path is not None else str(source)
        card = model_card(name, origin, dtype, adapter_base=base)
        export_adapter(checkpoint, base, output, average=average, card=card)
    else:
        card = model_card(name, origin, dtype)
        export_checkpoint(checkpoint, source, output, average=average, max_shard_size=max_shard_size, card=card)
    print(f"exported {'the averaged weights of ' if average else ''}{checkpoint} to {output}")
    if arguments.verify:
        difference = verify(output, checkpoint, source, dtype, base, average=average)
        print(f"verified: logits differ by at most {difference:.1e} from the checkpoint's")
    if repository is not None:
        print(f"uploaded to {push_to_hub(output, repository, private=arguments.private)}")


def push_to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a folder to a model repository, which is made if it is not there, and returns its address.

    Raises UserError when the hub refuses: no login, no right, no such owner.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Checkpoint exported by uniar-rl")
    except Exception as error:  # the hub's, or those of the client that its version has: refused, offline, timed out
        raise UserError(
            f"{folder} is written, but could not be uploaded to {repository}: {reason_of(error)} (log in with "
            "`hf auth login` or HF_TOKEN, as someone who may write there)."
        ) from error
    return str(address)


def _source(checkpoint: Path, named: str | None) -> Path:
    if named is not None:
        return resolve_checkpoint(named)
    return source_of(checkpoint)
