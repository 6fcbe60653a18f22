"""`uniar-rl benchmark NAME`: a public benchmark drawn, scored, and written down as a table, rows and a report.

uniar-rl benchmark shapes --model runs/quickstart/final --baseline assets/uniar-tiny
torchrun --nproc_per_node 8 -m rl.cli benchmark geneval --model PATH --prompts geneval_long.jsonl
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from rl.benchmarks.drawing import already_drawn, draw_missing, image_records
from rl.benchmarks.folder import BASELINE
from rl.benchmarks.model import BenchmarkModel
from rl.benchmarks.official import write_official
from rl.benchmarks.plan import BenchmarkPlan, described, missing_needs, output_of, planned, reward_entries
from rl.benchmarks.scoring import score_images
from rl.benchmarks.table import score_table
from rl.checkpoint.layout import ENVIRONMENT, REPORT
from rl.commands.compare import as_json, as_text
from rl.distributed.setup import world_size
from rl.records.environment import environment
from rl.report.evaluations import evaluation_files, named_rows
from rl.report.page import write_report
from rl.report.paired import compare_rows
from rl.run.folder import RunFolder
from rl.run.records import json_ready
from uniar.errors import UserError
from uniar.placement import choose_device
from uniar.processes import PATIENCE
from uniar.reading.files import read_regular, user_path, write_whole, writing
from uniar.reading.json_lines import parse_json
from uniar.shareable import shareable
from uniar.shipped_files import shipped_model


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 1 where a dry run finds something missing, else 0."""
    if arguments.dry_run:
        return _dry_run(arguments)
    plan = planned(arguments)
    device = choose_device(arguments.device)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience]) if world_size() > 1 else None
    device = device if accelerator is None else accelerator.device
    before = None
    if arguments.baseline is not None:
        before = _drawn_before(arguments.baseline, plan)
    models = [(_model(arguments, arguments.model, device), plan.output)]
    if arguments.baseline is not None and before is None:
        before = plan.output / BASELINE
        models.insert(0, (_model(arguments, arguments.baseline, device), before))
    processors = [model.check(plan.records, plan.settings) for model, _ in models]
    for _, path in models:
        plan.folder(path).claim()
    plan.rewards.load()
    try:
        for (model, path), processor in zip(models, processors, strict=True):
            _measure(plan, model, processor, path, accelerator, overwrite=arguments.overwrite)
    finally:
        plan.rewards.close()
    if accelerator is None or accelerator.is_main_process:
        _conclude(plan, before)
    return 0


def _model(arguments: argparse.Namespace, name: str, device: torch.device) -> BenchmarkModel:
    return BenchmarkModel.find(name, device, arguments.dtype, arguments.attention)


def _drawn_before(name: str, plan: BenchmarkPlan) -> Path | None:
    """The folder that this command left of another model; None for a model. Raises UserError for other samples."""
    path = user_path(name)
    if not (path.is_dir() and evaluation_files(path) and (path / "table.json").is_file()):
        return None
    rows = named_rows(path)[1]
    own = {(sample.record.id, sample.index, plan.settings.bits_seed(sample, 0)) for sample in plan.samples}
    if own != set(zip(*(rows[key].to_pylist() for key in ("id", "sample", "seed")), strict=True)):
        raise UserError(
            f"--baseline {name} is of other prompts or another seed; draw both with the same --prompts, --limit, "
            "--images-per-prompt and --seed."
        )
    found = parse_json(read_regular(path / "table.json").decode(errors="replace"), f"{path / 'table.json'}")
    before = found.get("settings") if isinstance(found, dict) else None
    own_settings = json_ready(plan.settings.of_images())
    for key, value in own_settings.items():
        if not isinstance(before, dict) or before.get(key) != value:
            drawn = before.get(key) if isinstance(before, dict) else None
            raise UserError(f"--baseline {name} was drawn with {key} {drawn}, not {value}; draw both alike.")
    return path


def _measure(
    plan: BenchmarkPlan,
    model: BenchmarkModel,
    processor: Any,
    path: Path,
    accelerator: Accelerator | None,
    *,
    overwrite: bool,
) -> None:
    """Draws what is missing, scores all of it, and writes what an evaluation leaves, with the table."""
    folder, samples = plan.folder(path), plan.samples
    there = draw_missing(folder, samples, model, processor, plan.settings, accelerator, overwrite=overwrite)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    evaluation = score_images(folder, samples, plan.settings, plan.rewards, accelerator)
    if evaluation.rows is None:
        return
    name = shareable(model.name)
    settings = {**plan.settings.to_mapping(), "images_per_prompt": plan.images, "dtype": model.dtype}
    table = score_table(evaluation.rows, plan.records, plan.benchmark.groups)
    head = {"benchmark": plan.name, "model": name, "prompts": len(plan.records), "settings": settings}
    with writing(path):
        if overwrite:
            folder.prune(samples)
        folder.describe()
        official = write_official(plan.name, folder, samples, _short_name(model))
        RunFolder(path).save_evaluation(0, evaluation, None)
        metrics = evaluation.metrics() if plan.rewards.names else {}
        scores = {"checkpoint": name, "recipe": f"benchmark {plan.name}", "evaluate": settings, "metrics": metrics}
        for file, content in (("scores.json", scores), ("table.json", {**head, **table.plain()})):
            write_whole(path / file, json.dumps(json_ready(content), indent=2, ensure_ascii=False) + "\n")
        write_whole(path / ENVIRONMENT, json.dumps(environment(world_size()), indent=2) + "\n")
        already = f" ({there} were there)" if there else ""
        prompts = f"{len(plan.records)} prompt{'s' * (len(plan.records) > 1)}"
        title = f"{plan.name}  {name}: {prompts}, {len(samples)} image{'s' * (len(samples) > 1)}{already}"
        text = f"{title}\n\n{table.text()}\n" if plan.rewards.names else f"{title}\n"
        write_whole(path / "table.txt", text)
    print(text)
    if official is not None:
        print(f"for the official scorer: {official}\n")


def _conclude(plan: BenchmarkPlan, before: Path | None) -> None:
    """The comparison with the baseline, and the page."""
    pages = [plan.output]
    with writing(plan.output):
        if before is not None:
            pages.insert(0, before)
            one, two = _rows(before), _rows(plan.output)
            found = compare_rows(one, two, (str(before), str(plan.output)))
            print(as_text(str(before), str(plan.output), found) + "\n")
            write_whole(plan.output / "comparison.json", as_json(str(before), str(plan.output), found) + "\n")
        write_report(pages, plan.output / REPORT)
    print(f"written to {plan.output}")


def _rows(path: Path) -> pa.Table:
    return named_rows(path)[1]


def _short_name(model: BenchmarkModel) -> str:
    """What a scorer's folders call it."""
    return Path(model.name).name.replace(":", "-") or "model"


def _dry_run(arguments: argparse.Namespace) -> int:
    plan, missing, in_the_way = None, [], []
    try:
        plan = planned(arguments)
    except UserError as error:
        missing.append(str(error))
    missing += missing_needs(reward_entries(arguments))
    output = output_of(arguments)
    for name, path in ((arguments.model, output), (arguments.baseline, output / BASELINE)):
        try:
            model = None if name is None else _own_model(name, arguments, plan)
        except UserError as error:
            missing.append(str(error))
            continue
        if model is not None and plan is not None:
            try:
                plan.folder(path).check_free()
                if not arguments.overwrite:
                    already_drawn(plan.folder(path), plan.samples, image_records(plan.samples, model, plan.settings))
            except UserError as error:
                in_the_way.append(str(error))
    print(described(plan, arguments))
    for label, sentences in (("missing", missing), ("in the way", in_the_way)):
        for sentence in dict.fromkeys(sentences):
            print(f"{label:10} {sentence}")
    return int(bool(missing or in_the_way))


def _own_model(name: str, arguments: argparse.Namespace, plan: BenchmarkPlan | None) -> BenchmarkModel | None:
    """The model that would draw; None for a folder of images to compare with. Downloads nothing. Raises UserError for
    one that is not here, or does not draw these prompts."""
    if not (name.startswith("preset:") or shipped_model(name) or user_path(name).exists()):
        raise UserError(f"the model {name} is not here; where it is a hub id, it would be downloaded")
    if plan is None or (name == arguments.baseline and _drawn_before(name, plan) is not None):
        return None
    model = _model(arguments, name, choose_device(arguments.device))
    model.check(plan.records, plan.settings)
    return model
