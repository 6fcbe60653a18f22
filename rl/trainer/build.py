"""From the sections of a recipe to the objects that a run, or an evaluation, is made of."""

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rewards import RewardSuite
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe, RolloutSection, SizeSection
from rl.data.prompts import PromptRecord, load_prompts
from rl.data.questions import QuestionRecord, load_questions
from rl.episodes.registry import DEFAULT, EPISODES, Episodes, episode_named
from rl.episodes.requests import Draw
from rl.episodes.running import RunningEpisode
from rl.evaluation.evaluate import Evaluator, require_free_names
from rl.evaluation.understanding import Examiner
from rl.policy.loading import check_adapters
from rl.policy.samples import DrawSettings
from rl.policy.text_kl import TextKL
from rl.scoring.scorer import Scorer
from uniar.configuration_uniar import UniARConfig
from uniar.decoder_sizes import DecoderSizes
from uniar.engine.running import check_engine
from uniar.errors import UserError, did_you_mean
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.placement import DTYPES
from uniar.processing import check_size
from uniar.reading.prompt_files import Keys
from uniar.reading.prompt_text import check_text, reserved_tokens


def held_out_prompts(recipe: Recipe) -> list[PromptRecord]:
    """The prompts of `evaluate`; none where it names none."""
    if recipe.evaluate.prompts is None:
        return []
    return _load(recipe, "evaluate.prompts", recipe.evaluate.prompts)[: recipe.evaluate.limit]


def training_prompts(recipe: Recipe) -> list[PromptRecord]:
    """The prompts of `data`. Raises UserError for a tag that none has."""
    records, tags = _load(recipe, "data.prompts", recipe.data.prompts), recipe.data.tags
    if tags is None:
        return records
    known = sorted({record.tag for record in records if record.tag is not None})
    with blamed_on(recipe, "data.tags"):
        listed = ", ".join(known) or "none"
        if not tags:
            raise UserError(f"an empty list leaves no prompts; their tags are {listed}.")
        for tag in tags:
            if tag not in known:
                raise UserError(f"no prompt has the tag {tag!r}; the tags are {listed}.{did_you_mean(tag, known)}")
    return [record for record in records if record.tag in tags]


def _load(recipe: Recipe, key: str, source: str) -> list[PromptRecord]:
    data = recipe.data
    with blamed_on(recipe, key):
        return load_prompts(source, data.image_root, recipe.data_seed, Keys(data.prompt_key, data.image_key))


def check_prompts(
    processor: Any,
    records: Sequence[PromptRecord],
    held_out: Sequence[PromptRecord],
    questions: Sequence[QuestionRecord],
) -> None:
    """What the checkpoint's processor has to say of the prompts and questions. Raises UserError naming file and
    line."""
    tokens = reserved_tokens(processor)
    for record in (*records, *held_out):
        check_text(record.prompt, f"{record.where}: the prompt", tokens)
    for question in questions:
        check_text(question.question, f"{question.where}: 'question'", tokens)
        check_text(question.answer, f"{question.where}: 'answer'", tokens)


def load_episodes(
    recipe: Recipe, tasks: Collection[str | None] | None = None, key: str = "rollout.episodes"
) -> Episodes:
    """Those of `rollout.episodes`, loaded. tasks: of all prompts, where they are known. key: where the recipe has them.
    Raises UserError for one that is none, and for a task that no prompt has."""
    episodes = Episodes(recipe.rollout.episodes, Path(recipe.source).parent)
    for task, name in recipe.rollout.episodes.items():
        with blamed_on(recipe, f"{key}.{task}"):
            episode_named(name, Path(recipe.source).parent)
            if tasks is not None and task not in (*tasks, DEFAULT):
                known = sorted(str(one) for one in tasks if one is not None)
                raise UserError(
                    f"no prompt has the task {task!r}; the tasks are {', '.join(known) or 'none'}."
                    f"{did_you_mean(task, [*known, DEFAULT])}"
                )
    return episodes


def held_out_questions(recipe: Recipe) -> list[QuestionRecord]:
    """The questions of `understanding`; none where it names none."""
    asked = recipe.understanding
    with blamed_on(recipe, "understanding.questions"):
        return [] if asked.questions is None else load_questions(asked.questions, asked.image_root, asked.limit)


def text_kl_questions(recipe: Recipe) -> list[QuestionRecord]:
    """The questions of the text-KL term; none without one."""
    asked = recipe.understanding
    with blamed_on(recipe, "understanding.kl_questions"):
        if asked.kl_questions is None or not asked.kl_beta:
            return []
        return load_questions(asked.kl_questions, asked.image_root)


def build_examiner(recipe: Recipe, questions: Sequence[QuestionRecord], processor: Any) -> Examiner | None:
    """None where there are no held-out questions."""
    asked = recipe.understanding
    if not questions:
        return None
    return Examiner(questions, processor, batch_size=asked.batch_size, max_new_tokens=asked.max_new_tokens)


def build_text_kl(
    recipe: Recipe, questions: Sequence[QuestionRecord], processor: Any, config: UniARConfig
) -> TextKL | None:
    """None where the recipe has no text-KL term."""
    asked = recipe.understanding
    if not questions:
        return None
    return TextKL(
        questions,
        processor,
        config,
        beta=asked.kl_beta,
        questions_per_update=asked.kl_questions_per_update,
        seed=recipe.seed,
    )


def build_rewards(recipe: Recipe, key: str, records: Sequence[PromptRecord]) -> RewardSuite:
    """The rewards under `key`; plug-in files are named relative to the recipe."""
    with blamed_on(recipe, key):
        suite = RewardSuite.from_recipe(getattr(recipe, key), key=key, folder=Path(recipe.source).parent)
        _check_records(suite, records)
    return suite


def _check_records(suite: RewardSuite, records: Sequence[PromptRecord]) -> None:
    suite.check_tasks(record.task for record in records if record.task is not None)
    suite.check_columns([record.task for record in records], [record.metadata for record in records])
    suite.check_samples((record.where, record.prompt, record.task, record.metadata) for record in records)


def build_eval_rewards(
    recipe: Recipe, held_out: Sequence[PromptRecord], rewards: RewardSuite | None = None
) -> RewardSuite:
    """The rewards of evaluations: `eval_rewards`, or where that is empty `rewards`, which may be built already."""
    if recipe.eval_rewards:
        return require_free_names(build_rewards(recipe, "eval_rewards", held_out))
    suite = rewards or RewardSuite.from_recipe(recipe.rewards, folder=Path(recipe.source).parent)
    if held_out:
        try:
            _check_records(suite, held_out)
        except UserError as error:
            raise UserError(
                f"evaluate.prompts {recipe.evaluate.prompts}, scored with `rewards` as eval_rewards is empty: {error}"
            ) from error
        require_free_names(suite)
    return suite


def load_decoder(recipe: Recipe, source: Path, device: torch.device | str) -> UniARVisualDecoder:
    where = device if recipe.decode.device == "gpu" else "cpu"
    decoder = UniARVisualDecoder.from_pretrained(
        source, device=where, torch_dtype=DTYPES[recipe.decode.dtype or recipe.model.dtype]
    )
    return decoder.compile_blocks() if recipe.decode.compile else decoder


def check_model(recipe: Recipe, source: Path, records: Sequence[PromptRecord] = ()) -> None:
    """Raises UserError for a size, of the recipe or of a prompt, that the checkpoint in `source` cannot draw, or its
    decoder not at this ratio, for adapters that the model cannot have, an engine without the device that it needs,
    an attention that is not installed, and a plug-in episode that fails before its first turn. Loads configs alone."""
    rollout, ratio, sizes = recipe.rollout, recipe.decode.upsampling_ratio, DecoderSizes.of_checkpoint(source)
    named: dict[str, RolloutSection | SizeSection] = {
        "rollout": rollout,
        **{f"rollout.sizes.{place}": size for place, size in enumerate(rollout.sizes)},
    }
    for place, size in named.items():
        for side in ("height", "width"):
            with blamed_on(recipe, f"{place}.{side}"):
                unit = sizes.pixels_per_token
                check_size(**{"height": unit, "width": unit, side: getattr(size, side)}, pixels_per_token=unit)
        larger = f"{place}.height" if size.height >= size.width else f"{place}.width"
        with blamed_on(recipe, larger if ratio == 1 else "decode.upsampling_ratio"):
            sizes.output(size.height, size.width, ratio)
    for own, record in {record.size: record for record in reversed(records) if record.size is not None}.items():
        try:
            sizes.output(*own, ratio)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from error
    with blamed_on(recipe, "model.lora.target_modules"):
        check_adapters(recipe.model, source)
    with blamed_on(recipe, "rollout.engine"):
        check_engine(rollout.engine, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if recipe.model.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UserError(
            f"{recipe.where('model.attention')}: model.attention is flash_attention_2, and flash-attn is "
            "not installed; install it with `pip install 'uniar-rl[flash]'`, or use sdpa."
        )
    _try_episodes(recipe, sizes, records)


def _try_episodes(recipe: Recipe, sizes: DecoderSizes, records: Sequence[PromptRecord]) -> None:
    """Runs each plug-in episode to its first request, on the first prompt of each task: what fails at once does so
    before weights are loaded."""
    settings = replace(DrawSettings.for_training(recipe), decoder=sizes)
    for task, record in {record.task: record for record in reversed(records)}.items():
        if (name := settings.episodes.name_of(task)) in EPISODES:
            continue
        with blamed_on(recipe, "rollout.episodes"):
            episode = RunningEpisode(settings.episodes, replace(record, metadata=deepcopy(record.metadata)))
            if isinstance(episode.request, Draw) and episode.request.size is not None:
                settings.check_size(episode.request.size, sizes.pixels_per_token, f"the episode {name}: ")
            episode.end()


def build_evaluator(
    recipe: Recipe, records: Sequence[PromptRecord], processor: Any, scorer: Scorer, name: str | None = None
) -> Evaluator | None:
    """None where the recipe names no held-out prompts. name: of the held-out set that they are."""
    if not records:
        return None
    return Evaluator(
        records,
        processor,
        scorer,
        DrawSettings.for_evaluation(recipe),
        samples_per_prompt=recipe.evaluate.samples_per_prompt,
        grid_prompts=recipe.evaluate.grid_prompts,
        picture_size=recipe.records.picture_size,
        name=name,
    )
