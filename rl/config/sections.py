"""What a recipe can say: one dataclass a section, each setting with its type, default and help text.

docs/config.md is generated from this file and the four that it imports sections from (`python -m docs.config_page`);
reading, overriding and checking recipes is in rl/config/recipe.py. Only types and help texts live here, so importing it
costs nothing.
"""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from pathlib import Path
from typing import Any, Literal

from rl.algorithm.guidance import CONVENTIONS, GuidanceSettings
from rl.config.algorithm import AlgorithmSection
from rl.config.distill import DistillSection
from rl.config.held_out_set import EvaluationSetSection
from rl.config.model import LARGEST_SEED, ModelSection, Place
from rl.config.watch import WatchSection
from uniar.engine import Engine
from uniar.reading.settings import Origins, origin_of, setting, settings_of
from uniar.reading.yaml_files import dump_yaml


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The prompts to train on."""

    prompts: str = setting(
        "A prompt file (.jsonl, .json, .txt, .csv, .tsv, .parquet, also with .gz; fields prompt, task, metadata, "
        "image, answer, height, width, id), a folder of such, a YAML mix, or `datasets:NAME[:SPLIT]` for a dataset of "
        "the Hugging Face hub or a folder that `save_to_disk` wrote; see [prompt files](#prompt-files).",
        path=True,
    )
    prompt_key: str | None = setting(
        "Field or column that holds the prompt, for evaluate.prompts too; null: prompt, else instruction or prompt_en.",
        None,
    )
    image_key: str | None = setting(
        "Field or column, there or in the metadata, that names the picture to edit, for evaluate.prompts too; null: "
        "image, else input_image.",
        None,
    )
    image_root: str | None = setting(
        "Folder that relative paths of input images start from, for evaluate.prompts too; null: the folder of the "
        "file that names them.",
        None,
        path=True,
    )
    tags: list[str] | None = setting(
        "Use only the prompts about these skills, which their metadata name as `tag` (or `category`, `edit_type`); "
        "null: all. Those of evaluate.prompts stay.",
        None,
    )
    shuffle: bool = setting("Draw the prompts in random order, a new one each epoch.", True)
    seed: int | None = setting(
        "Seed of that order, and of the subset that a mix takes of a file with sampled_ratio below 1; null: `seed`.",
        None,
        ge=0,
        le=LARGEST_SEED,
    )


@dataclasses.dataclass(frozen=True)
class DynamicSamplingSection:
    """Groups whose rewards do not differ are replaced by groups of further prompts (DAPO)."""

    max_rounds: int = setting(
        "Further rounds that a rollout may take, each as large as what is missing. What is missing after them is "
        "filled with the groups that were to be replaced.",
        3,
        ge=1,
    )
    min_std: float = setting(
        "A group is replaced unless the standard deviation of its rewards is above this; for gdpo, that of any reward.",
        1e-8,
        ge=0,
    )


@dataclasses.dataclass(frozen=True)
class SizeSection:
    """A size to draw in."""

    height: int = setting("Height in pixels, a multiple of patch × merge (32).", ge=1)
    width: int = setting("Width in pixels, a multiple of patch × merge (32).", ge=1)
    weight: float = setting("How often, beside the weights of the other sizes.", 1.0, gt=0)


@dataclasses.dataclass(frozen=True)
class RolloutSection:
    """How the policy draws visual bits, and writes text."""

    height: int = setting(
        "Height of the image in pixels as the model draws it, a multiple of patch × merge (32).", 512, ge=1
    )
    width: int = setting(
        "Width of the image in pixels as the model draws it, a multiple of patch × merge (32).", 512, ge=1
    )
    sizes: list[SizeSection] = setting(
        "Sizes that groups are drawn in, a list of {height, width, weight}: each group in one of them, by chance, as "
        "often as its weight (1) says beside the others. Empty: all in height × width. A prompt record's own `height` "
        "and `width` come first.",
        factory=list,
    )
    episodes: dict[str, str] = setting(
        "How prompts become turns: task → draw, answer, think_draw, draw_check_redraw, or path/to/file.py:function; "
        "`default` is for all other tasks, and draw where it is not given. See [episodes](episodes.md).",
        factory=dict,
    )
    samples_per_prompt: int = setting("Samples of each prompt: the group that advantages compare.", 16, ge=2)
    temperature: float = setting("Sampling temperature T of bits; log-probabilities are those at T.", 1.0, ge=1e-3)
    text_temperature: float = setting("The same of written text.", 1.0, ge=1e-3)
    max_new_tokens: int = setting(
        "Longest text that a turn writes, in tokens, where the episode says nothing.", 128, ge=1
    )
    guidance: Literal[tuple(CONVENTIONS)] = setting(
        "Whose log-probabilities are trained under classifier-free guidance. "
        + " ".join(f"{convention.name}: {convention.help}" for convention in CONVENTIONS.values()),
        "none",
    )
    guidance_scale: float = setting(
        "Strength s of guidance, u + s·(c − u) on logits: 1 with guidance none, above 1 otherwise.", 1.0, ge=1
    )
    dynamic_sampling: DynamicSamplingSection | None = setting(
        "Replace groups without variance in their rewards, which teach nothing; null: keep them.", None
    )
    memory_budget_gb: float | None = setting(
        "Memory in GB (10⁹ bytes) that the key-value caches of a rollout may take; larger batches are drawn in parts, "
        "in float32 with the same bits, in bfloat16 with about one in a thousand changed. null: one part.",
        None,
        gt=0,
    )
    engine: Engine = setting(
        "How a step of the rollout runs. eager: operator by operator. graph: captured as a CUDA graph, with the same "
        "kernels and bits. compiled: layers compiled by torch.compile, and captured on a GPU; needs a C++ compiler and "
        "rounds otherwise in the last digit. auto: on a GPU, graph where its first tokens have eager's bits, else "
        "eager with a warning; on a CPU, eager.",
        "auto",
    )
    show_progress: bool = setting("Show a progress bar over the visual tokens of each rollout.", False)

    @property
    def guidance_settings(self) -> GuidanceSettings:
        """What turns raw gaps into those of the policy that draws."""
        return GuidanceSettings(self.guidance, self.guidance_scale, self.temperature)


@dataclasses.dataclass(frozen=True)
class DecodeSection:
    """How the SD3 decoder turns bits into the images that rewards see."""

    upsampling_ratio: float = setting("Image size over the size that the model draws at.", 1.0, ge=1, le=2)
    num_inference_steps: int = setting("Denoising steps.", 14, ge=1)
    guidance_scale: float = setting("The decoder's own guidance; 1: none, at half the cost.", 1.0, ge=1)
    batch_size: int = setting("Images decoded at once.", 4, ge=1)
    dtype: Literal["float32", "bfloat16", "auto"] | None = setting(
        "Type of the decoder's weights; null: model.dtype. auto: bfloat16 where the machine that reads the recipe has "
        "kernels for it, a GPU or a CPU with AVX-512, else float32; `trainer.bf16: auto` is the same for the update.",
        None,
    )
    device: Place = setting("Where the decoder runs: gpu is the training device.", "gpu")
    compile: bool = setting(
        "Compile the blocks of the decoder's transformer with torch.compile: fewer and larger kernels, pictures that "
        "differ in the last digit; needs a C++ compiler, and half a minute at the first decode.",
        False,
    )
    processes: int = setting(
        "How many of the processes that the launcher starts on each machine only decode and score for the others, at "
        "most half of them; the others train, without the decoder and the reward models in their memory. It is for "
        "where these do not fit beside the policy, and costs time: of 8 GPUs, 1 that decodes makes an update of "
        "UniAR-SFT 4 times as long, 4 make it 1.7 times (computed). 0: every process decodes its own images, as "
        "`uniar-rl evaluate` always does.",
        0,
        ge=0,
    )
    same_noise_per_group: bool = setting(
        "Start all images of a prompt from the same noise, so that their rewards differ by the bits alone.", True
    )


@dataclasses.dataclass(frozen=True)
class EarlyStopSection:
    """When held-out scores stop rising."""

    metric: str = setting(
        "The score that must rise: reward (the total), or the name of one of the evaluation's rewards.",
        "reward",
        fixed="the best score so far is another metric's",
    )
    patience: int = setting("Evaluations in a row without an improvement that end training.", 3, ge=1)
    min_delta: float = setting("An improvement is a gain over the best so far by more than this.", 0.0, ge=0)


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """Evaluation on held-out prompts with `eval_rewards`, at its own temperature and guidance, same noise each time."""

    prompts: str | None = setting("Held-out prompts, named as in data.prompts; null: no evaluation.", None, path=True)
    samples_per_prompt: int = setting("Images drawn of each prompt.", 1, ge=1)
    temperature: float = setting("Sampling temperature; 0: greedy.", 0.1, ge=0)
    text_temperature: float = setting("Sampling temperature of written text; 0: greedy.", 0.0, ge=0)
    guidance_scale: float = setting("Strength of classifier-free guidance on the visual logits; 1: none.", 2.5, ge=1)
    num_inference_steps: int | None = setting("Denoising steps of the decoder; null: as in decode.", None, ge=1)
    sets: dict[str, EvaluationSetSection] = setting(
        "Named held-out sets, in place of the one of evaluate.prompts: name → what is otherwise for it. Scores are "
        "logged as eval_NAME/reward and so on, and over all samples of all sets as eval_reward.",
        factory=dict,
    )
    every: int | None = setting("Updates between two evaluations; null: none in between.", None, ge=1)
    at_start: bool = setting("Evaluate before the first update.", True)
    at_end: bool = setting("Evaluate after the last update.", True)
    limit: int | None = setting("Use only the first prompts, this many; null: all.", None, ge=1)
    seed: int = setting(
        "Seed of the noise, the same at every evaluation, so that they are paired.", 0, ge=0, le=LARGEST_SEED
    )
    grid_prompts: int = setting("Prompts shown in the sample grids.", 8, ge=0)
    early_stop: EarlyStopSection | None = setting(
        "End training when a held-out score has stopped rising, and keep the best model, as evaluated, in the run's "
        "best/, in the released layout. null: train to the end.",
        None,
    )
    ema: bool = setting(
        "Evaluate the averaged weights of model.ema, not the trained ones, and export them at the end.", False
    )


@dataclasses.dataclass(frozen=True)
class UnderstandingSection:
    """Questions about pictures. They measure, with each evaluation, how much of its understanding the model keeps while
    it learns to draw; a KL term can hold its answers to those of the reference. A file of questions is JSONL with the
    fields `image`, `question` and `answer`."""

    questions: str | None = setting("Held-out questions, a JSONL file; null: none are asked.", None, path=True)
    image_root: str | None = setting(
        "Folder that relative paths of the pictures start from, for kl_questions too; null: the file's own.",
        None,
        path=True,
    )
    every: int | None = setting(
        "Updates between two evaluations; null: as evaluate.every. The first and the last follow evaluate.at_start and "
        "evaluate.at_end.",
        None,
        ge=1,
    )
    limit: int | None = setting("Ask only the first questions, this many; null: all.", None, ge=1)
    batch_size: int = setting("Questions asked at once.", 8, ge=1)
    max_new_tokens: int = setting("Longest answer, in tokens.", 32, ge=1)
    kl_beta: float = setting(
        "Weight of the text-KL term: the KL divergence to the reference over the vocabulary, in nats, mean over the "
        "positions of the right answers to kl_questions; 0: none.",
        0.0,
        ge=0,
    )
    kl_questions: str | None = setting(
        "Questions of the text-KL term, a JSONL file; others than those held out.", None, path=True
    )
    kl_questions_per_update: int = setting("How many of these questions an update asks, over all processes.", 8, ge=1)


@dataclasses.dataclass(frozen=True)
class RecordsSection:
    """What a run keeps to be looked at, besides its metrics: see [reports](reports.md)."""

    picture_size: int | None = setting(
        "Longest side, in pixels, of the pictures that are kept of held-out samples, of held-out questions and of "
        "training groups; null: as large as they are drawn; 0: none is kept.",
        256,
        ge=0,
    )
    groups_every: int | None = setting(
        "Updates between two rollouts of which training groups are kept, with their advantages; null: none are.",
        50,
        ge=1,
    )
    groups: int = setting("Prompts whose groups are kept of such a rollout.", 4, ge=1)
    report: bool = setting("Write report.html after each evaluation.", True)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole recipe, defaults filled in."""

    model: ModelSection = setting("The policy to train and its reference.")
    data: DataSection = setting("The prompts to train on.")
    rewards: list[dict[str, Any]] = setting(
        "The rewards to train on, at least one; with `distill` none is, and these serve evaluations alone.",
        factory=list,
    )
    eval_rewards: list[dict[str, Any]] = setting("The rewards of evaluations; empty: `rewards`.", factory=list)
    rollout: RolloutSection = setting("How the policy draws visual bits.", factory=RolloutSection)
    decode: DecodeSection = setting("How bits become images.", factory=DecodeSection)
    evaluate: EvaluateSection = setting("Evaluation on held-out prompts.", factory=EvaluateSection)
    understanding: UnderstandingSection = setting(
        "Questions about pictures: held-out questions, and a KL term on answers.", factory=UnderstandingSection
    )
    algorithm: AlgorithmSection = setting("The loss.", factory=AlgorithmSection)
    distill: DistillSection | None = setting(
        "Train towards experts, without rewards (`uniar-rl distill`); null: train on rewards.", None
    )
    records: RecordsSection = setting("What is kept to be looked at.", factory=RecordsSection)
    watch: WatchSection = setting("What ends or interrupts a run that goes wrong.", factory=WatchSection)
    trainer: dict[str, Any] = setting(
        "Arguments of TRL's GRPOConfig and transformers' TrainingArguments, by their own names.", factory=dict
    )
    output_dir: str | None = setting(
        "Folder of the run; null: runs/ and the recipe's name, followed by a number where that folder exists.",
        None,
        path=True,
    )
    resume: Literal["never", "auto"] = setting(
        "What to do with an output_dir that holds a run. never: refuse it, unless `--resume` is given. auto: continue "
        "from its newest good checkpoint, or start again where there is none; a finished run is left as it is.",
        "never",
    )
    max_runtime: float | None = setting(
        "Hours after which the run saves and ends, to be resumed later; null: no limit.", None, gt=0
    )
    seed: int = setting("Seed of the run: noise of rollouts and decoder, order of prompts.", 0, ge=0, le=LARGEST_SEED)
    base: str | None = setting(
        "Another recipe that this one builds on, its path starting from this file's folder. Mappings are merged key "
        "by key, lists and plain values replaced; command-line overrides come last.",
        None,
    )
    source: str = dataclasses.field(default="recipe", compare=False)  # the file, for messages
    origins: Origins = dataclasses.field(default_factory=dict, compare=False, repr=False)  # where each key was written
    settled: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # keys that were `auto`

    def where(self, key: str) -> str:
        """Where a key such as "trainer.max_steps" was written, or else the section around it: file and line, or the
        override on the command line."""
        return origin_of(tuple(key.split(".")), {(): self.source, **self.origins})

    @property
    def data_seed(self) -> int:
        """Seed of the order of the prompts and of what a mix takes of a file."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def default_folder(self) -> str:
        """The run folder of a recipe that names none."""
        return f"runs/{Path(self.source).stem}"

    @property
    def names_its_folder_itself(self) -> bool:
        return ("output_dir",) in self.origins or self.output_dir != self.default_folder

    @property
    def needs_reference(self) -> bool:
        """Whether any term of the loss measures from the reference policy. In distillation the KL term does not: it
        measures from the experts."""
        return (self.algorithm.has_kl_term and self.distill is None) or self.understanding.kl_beta > 0

    @property
    def expert_guidance(self) -> dict[str, GuidanceSettings]:
        """What makes the policy of each expert, or of the reference, named "", of its raw gaps."""
        policy = self.rollout.guidance_settings
        if self.distill is not None:
            return self.distill.guidance(policy)
        return {"": self.algorithm.reference.guidance(policy)}

    @property
    def reference_draws_otherwise(self) -> bool:
        """Whether the reference has its own guidance or temperature, so that KL to it is above 0 from the start."""
        policy = self.rollout.guidance_settings
        return self.algorithm.reference.guidance(policy) != policy

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as plain values, every default filled in and its base, being merged already, left out."""
        mapping = dataclasses.asdict(self)
        return {field.name: mapping[field.name] for field in settings_of(type(self)) if field.name != "base"}

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; loading it gives an equal recipe."""
        return dump_yaml(self.to_mapping())
