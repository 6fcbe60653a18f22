"""The images of a benchmark that are not there yet, drawn: by one process or several, in one go or in many.

Batches are fixed before they are shared, so that an image does not depend on the number of processes, nor on where an
earlier call was stopped.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rl.benchmarks.folder import BenchmarkFolder, image_record
from rl.benchmarks.model import BenchmarkModel
from rl.distributed.sharing import fixed_batches, share_of
from rl.policy.play import play
from rl.policy.samples import DrawSettings, Sample
from rl.scoring.decoding import decode

if TYPE_CHECKING:
    from accelerate import Accelerator


def image_records(samples: Sequence[Sample], model: BenchmarkModel, settings: DrawSettings) -> list[dict[str, Any]]:
    """What the file of each sample says of how it was drawn."""
    weights = model.fingerprint
    return [image_record(sample, settings, model.dtype, weights, model.name) for sample in samples]


def already_drawn(folder: BenchmarkFolder, samples: Sequence[Sample], records: Sequence[dict[str, Any]]) -> set[int]:
    """The numbers of the samples whose images are there. Raises UserError for one that was drawn otherwise."""
    return {n for n, sample in enumerate(samples) if folder.is_drawn(sample, records[n])}


def draw_missing(
    folder: BenchmarkFolder,
    samples: Sequence[Sample],
    model: BenchmarkModel,
    processor: Any,
    settings: DrawSettings,
    accelerator: "Accelerator | None" = None,
    *,
    overwrite: bool = False,
) -> int:
    """Draws what is missing in the folder and returns how many images were there. Raises UserError for an image that
    was drawn otherwise, unless `overwrite`."""
    records = image_records(samples, model, settings)
    there = set() if overwrite else already_drawn(folder, samples, records)
    batches = fixed_batches(len(samples), settings.decode_batch_size)
    batches = [batch for batch in batches if not there.issuperset(batch)]
    if accelerator is not None:
        accelerator.wait_for_everyone()  # until all have seen what is there
    if own := share_of(batches, accelerator):
        policy, decoder = model.load()
        settings = replace(settings, decoder=decoder.sizes)
        first = accelerator is None or accelerator.is_main_process
        for batch in tqdm(own, desc="draw", disable=not (first and sys.stderr.isatty())):
            drawn = [samples[n] for n in batch]
            played = play(policy, processor, drawn, settings, keep_turns=False)
            drawings = [one.completion.drawing for one in played]
            for n, image in zip(batch, decode(decoder, drawings, drawn, settings), strict=True):
                if n not in there:
                    folder.write(samples[n], image, records[n])
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return len(there)
