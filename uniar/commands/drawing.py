"""Requests → images on disk, for `generate` and `edit`.

Requests are gathered by size and drawn in batches. A sample's noise depends on the seed, its prompt and picture, and
its number alone, so neither its place in a batch nor what was drawn before changes it. A run that was stopped goes on
where it was: batches are the same again, to the last rounding, and those whose files are all there are left out.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from uniar.commands.layout import Output
from uniar.commands.loading import check_number
from uniar.commands.requests import Request
from uniar.drawn_files import check_manifest, is_drawn, write_image
from uniar.engine import Engine
from uniar.engine.running import check_engine
from uniar.errors import RunError, UserError
from uniar.generation import draw_noise, rollout
from uniar.placed_checkpoint import PlacedCheckpoint, memory_advice
from uniar.processes import Processes
from uniar.processing import build_visual_prompt
from uniar.reading.files import remove_unfinished, require_writable
from uniar.reading.pictures import picture_to_edit
from uniar.seeds import seed_of
from uniar.shareable import shareable

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder
    from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class DrawingOptions:
    """How an image is drawn; with the request and its number, all that it depends on."""

    seed: int
    cfg: float
    temperature: float
    upsampling_ratio: float
    steps: int
    decoder_guidance: float
    dtype: str
    weights: str
    """fingerprint of the checkpoint"""


@dataclass(frozen=True)
class RequestedImage:
    """Image number `index` of a request, and the file it goes to."""

    request: Request
    index: int
    path: Path

    def record(self, settings: DrawingOptions, model: str) -> dict[str, Any]:
        request = self.request
        edited = (
            {}
            if request.picture is None
            else {"image": shareable(str(request.picture)), "sha256": request.picture_digest}
        )
        return {
            "id": request.name,
            "prompt": request.prompt,
            **edited,
            "index": self.index,
            "copy": request.copy,
            "height": request.height,
            "width": request.width,
            **asdict(settings),
            "model": shareable(model),
        }

    def noise_seed(self, what: str, seed: int) -> int:
        request = self.request
        return seed_of(what, seed, request.prompt, request.picture_digest or "", request.copy, self.index)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for a number out of range."""
    check_number("--images-per-prompt", arguments.images_per_prompt, 1)
    check_number("--cfg", arguments.cfg, 0)
    check_number("--temperature", arguments.temperature, 0)
    check_number("--steps", arguments.steps, 1)
    check_number("--decoder-guidance", arguments.decoder_guidance, 0)
    check_number("--batch-size", arguments.batch_size, 1)
    if not 1 <= arguments.upsampling_ratio <= 2:
        raise UserError(f"--upsampling-ratio is {arguments.upsampling_ratio}; it must be 1 to 2.")
    if arguments.memory_budget_gb is not None:
        check_number("--memory-budget-gb", arguments.memory_budget_gb, 0, above=True)


def draw_requests(arguments: argparse.Namespace, checkpoint: PlacedCheckpoint, requests: Sequence[Request]) -> None:
    """Draws what is not there yet and says so.

    Raises UserError for a checkpoint that cannot draw, an output that cannot be used, and sizes that the visual decoder
    does not draw.
    """
    if not checkpoint.config().vistok_pred:
        raise UserError(f"{checkpoint.folder} has vistok_pred false: it reads images but has no head to draw them.")
    check_engine(arguments.engine, checkpoint.device)
    settings = DrawingOptions(
        seed=arguments.seed,
        cfg=arguments.cfg,
        temperature=arguments.temperature,
        upsampling_ratio=arguments.upsampling_ratio,
        steps=arguments.steps,
        decoder_guidance=arguments.decoder_guidance,
        dtype=checkpoint.dtype,
        weights=checkpoint.fingerprint(),
    )
    output = Output(arguments.output, arguments.layout)
    samples = [RequestedImage(r, k, output.place(r, k)) for r in requests for k in range(arguments.images_per_prompt)]
    if not output.is_folder and len(samples) > 1:
        raise UserError(
            f"--output {output.path} is one file, and there are {len(samples)} images to draw; name a folder."
        )
    _claim(output)
    records = {sample.path: sample.record(settings, checkpoint.name) for sample in samples}
    there = set() if arguments.overwrite else {path for path, record in records.items() if is_drawn(path, record)}
    # The batches are fixed before they are shared: what is drawn does not depend on the number of processes.
    batches = _batches(samples, arguments.batch_size)
    batches = [batch for batch in batches if any(sample.path not in there for sample in batch)]
    budget = None if arguments.memory_budget_gb is None else int(arguments.memory_budget_gb * 1e9)
    processes = Processes.here()
    with processes.connected():
        processes.wait()  # until all have seen what is there
        try:
            if own := batches[processes.rank :: processes.count]:
                for sample, image in _draw_batches(checkpoint, own, settings, budget, arguments.engine):
                    if sample.path not in there:
                        write_image(image, sample.path, records[sample.path])
            processes.wait()
        finally:
            if processes.rank == 0:
                output.describe(requests, [sample.path for sample in samples])
    if not arguments.quiet and processes.rank == 0:
        already = f" ({len(there)} already there)" if there else ""
        print(f"{len(samples)} image{'s' * (len(samples) > 1)} in {arguments.output}{already}")


def _draw_batches(
    checkpoint: PlacedCheckpoint,
    batches: Sequence[Sequence[RequestedImage]],
    settings: DrawingOptions,
    memory_budget: int | None,
    engine: Engine,
) -> Iterator[tuple[RequestedImage, Image.Image]]:
    """Loads the checkpoint and yields each sample with its image. Sizes are looked at before the AR model is loaded."""
    decoder = checkpoint.load_decoder()
    for height, width in {(sample.request.height, sample.request.width) for batch in batches for sample in batch}:
        decoder.output_size(height, width, settings.upsampling_ratio)
    model, processor = checkpoint.load_model(), checkpoint.load_processor()
    several = len(batches) > 1  # with a single batch, the bars of its own steps say more
    for batch in tqdm(batches, desc="batches", disable=not (checkpoint.show_progress and several)):
        with memory_advice(f"{len(batch)} images at once", "lower --batch-size, or give --memory-budget-gb."):
            images = draw_batch(
                model,
                processor,
                decoder,
                batch,
                settings,
                memory_budget=memory_budget,
                engine=engine,
                show_progress=checkpoint.show_progress and not several,
            )
        yield from zip(batch, images, strict=True)


def draw_batch(
    model: "UniARForConditionalGeneration",
    processor: Any,
    decoder: "UniARVisualDecoder",
    samples: Sequence[RequestedImage],
    settings: DrawingOptions,
    *,
    memory_budget: int | None = None,
    engine: Engine = "eager",
    show_progress: bool = False,
) -> list[Image.Image]:
    """Draws samples of one size, edits or not; `memory_budget` is in bytes."""
    requests = list({sample.request.name: sample.request for sample in samples}.values())
    numbers = {request.name: number for number, request in enumerate(requests)}
    height, width = requests[0].height, requests[0].width
    guided = settings.cfg > 1
    prompt = build_visual_prompt(
        [request.prompt for request in requests],
        model,
        processor,
        height=height,
        width=width,
        input_images=[
            None if asked.picture is None else picture_to_edit(asked.picture, height, width) for asked in requests
        ],
        unconditional=guided,
    )
    seeds = [sample.noise_seed("bits", settings.seed) for sample in samples]
    drawn = rollout(
        model,
        prompt,
        draw_noise(seeds, prompt.new_tokens, model.config.vision_config.code_shape),
        prompt_index=[numbers[sample.request.name] for sample in samples],
        guidance_scale=settings.cfg if guided else None,
        temperature=settings.temperature,
        show_progress=show_progress,
        return_gaps=True,
        memory_budget=memory_budget,
        engine=engine,
    )
    if not drawn.gap_cond.isfinite().all():
        raise RunError(f"the model draws from NaN or infinite logits in {settings.dtype}; its weights are damaged.")
    return decoder.decode(
        drawn.bits,
        ar_height=height,
        ar_width=width,
        upsampling_ratio=settings.upsampling_ratio,
        num_inference_steps=settings.steps,
        guidance_scale=settings.decoder_guidance,
        noise_seeds=[sample.noise_seed("decoder", settings.seed) for sample in samples],
        show_progress=show_progress,
    )


def _claim(output: Output) -> None:
    """Makes the folder. Raises UserError if something of another kind is in the way."""
    if not output.is_folder and output.path.is_dir():
        raise UserError(f"--output {output.path} is a folder; name a file in it, or a folder whose name has no .png.")
    if not (output.folder.exists() and not output.folder.is_dir()):
        require_writable(output.folder)
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"--output {output.path}: {output.folder} is a file where a folder is needed; name another."
        ) from None
    except OSError as error:
        raise UserError(f"--output {output.path}: {output.folder} cannot be made ({error.strerror}).") from error
    if output.is_folder:
        check_manifest(output.folder)
    remove_unfinished(output.folder, *output.files)


def _batches(samples: Sequence[RequestedImage], batch_size: int) -> list[list[RequestedImage]]:
    """Batches of one size each, in the order of the requests."""
    by_size: dict[tuple[int, int], list[RequestedImage]] = {}
    for sample in samples:
        by_size.setdefault((sample.request.height, sample.request.width), []).append(sample)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
