"""The `trainer` section: every argument of TRL's GRPOConfig, which has all of transformers' TrainingArguments.

Each is in one of three tables: owned by another key of the recipe, refused with the reason, or taken, with its range
and what a resumed run may do with it. What the project promises decides: its own loss, runs that resume to the bit,
nothing executed that comes with a checkpoint. A test fails when an installed version has an argument that is in none.
"""

import dataclasses
import enum
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rl.config.checkpointing import NAMES, Asked, what_is_wrong
from rl.config.habits import HABITS
from uniar.errors import UserError, did_you_mean
from uniar.reading.settings import Origins, check_type, home_expanded, origin_of

# What a section of the recipe owns -> where it is set.
OWNED = {
    "output_dir": "output_dir",
    "seed": "seed",
    "model_init_kwargs": "model",
    "data_seed": "data.seed",
    "shuffle_dataset": "data.shuffle",
    "train_sampling_strategy": "data.shuffle",
    "num_generations": "rollout.samples_per_prompt",
    "max_completion_length": "rollout.height and rollout.width",
    "temperature": "rollout.temperature",
    "reward_weights": "the weight of each entry of rewards",
    "loss_type": "algorithm.loss",
    "importance_sampling_level": "algorithm.ratio_level",
    "epsilon": "algorithm.epsilon",
    "epsilon_high": "algorithm.epsilon_high",
    "delta": "algorithm.delta",
    "beta": "algorithm.beta",
    "use_bias_correction_kl": "algorithm.kl",
    "multi_objective_aggregation": "algorithm.advantage.estimator",
    "scale_rewards": "algorithm.advantage.scale",
    "entropy_coef": "algorithm.entropy_coef",
    "num_iterations": "algorithm.num_iterations",
    **dict.fromkeys(["sync_ref_model", "ref_model_sync_steps"], "algorithm.reference_refresh"),
    "ref_model_mixup_alpha": "algorithm.reference_refresh.mix",
    "vllm_importance_sampling_correction": "algorithm.old_logp",
    "vllm_importance_sampling_mode": "algorithm.old_logp",
    "vllm_importance_sampling_clip_max": "algorithm.importance_cap",
    "vllm_importance_sampling_cap": "algorithm.importance_cap",
    "generation_batch_size": "trainer.steps_per_generation",
    "do_eval": "evaluate.prompts",
    "eval_strategy": "evaluate.every",
    "eval_steps": "evaluate.every",
    "eval_delay": "evaluate.at_start",
    "eval_on_start": "evaluate.at_start",
    "num_generations_eval": "evaluate.samples_per_prompt",
    "per_device_eval_batch_size": "evaluate",
    "eval_accumulation_steps": "evaluate",
    "log_completions": "evaluate.grid_prompts",
    "log_multimodal": "evaluate.grid_prompts",
    "num_completions_to_print": "evaluate.grid_prompts",
    "log_unique_prompts": "evaluate.grid_prompts",
    "log_completions_hub_repo": "evaluate.grid_prompts",
    **dict.fromkeys(["prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"], "evaluate"),
    **dict.fromkeys(["include_for_metrics", "batch_eval_metrics", "label_names", "do_predict"], "evaluate"),
    **dict.fromkeys(["bf16_full_eval", "fp16_full_eval"], "model.dtype and trainer.bf16"),
    "resume_from_checkpoint": "resume, or the option --resume",
    "disable_tqdm": "rollout.show_progress",
    "debug": "watch.nonfinite",
}

_NO_ENGINE = "rollouts are drawn by the engine of this package, see the section rollout"
_NO_FILTER = "every visual bit is sampled from its own probability, without filters or penalties"
_NO_LOSS = "it belongs to a loss that is not offered here, see algorithm.loss"
_NO_LIGER = "its kernels are for text logits, not for visual bits"
_NO_BEST = "evaluations choose no checkpoint; those that are kept stay in the run folder"

_NOT_TO_THE_BIT = "a resumed run would not be the run that was interrupted"
_OUR_BATCHES = "how samples are divided among processes and batches is what resuming to the bit relies on"
_ONE_OUTPUT = "the first process alone writes the run's folder, which all machines see"
_NO_TEXT_LOSS = "the loss is that of visual bits, see algorithm.loss"
_NO_HUB = (
    "transformers would upload a training checkpoint; `uniar-rl export --push-to-hub` uploads one that loads by itself"
)

# Refused -> why.
REFUSED = {
    **dict.fromkeys(["top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"], _NO_FILTER),
    **dict.fromkeys(["cache_implementation", "use_vllm", "use_transformers_paged"], _NO_ENGINE),
    **dict.fromkeys(["vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_max_model_length"], _NO_ENGINE),
    **dict.fromkeys(["vllm_structured_outputs_regex", "vllm_server_base_url", "vllm_server_host"], _NO_ENGINE),
    **dict.fromkeys(["vllm_server_port", "vllm_server_timeout", "vllm_group_port"], _NO_ENGINE),
    **dict.fromkeys(["vllm_gpu_memory_utilization", "vllm_tensor_parallel_size"], _NO_ENGINE),
    **dict.fromkeys(["use_transformers_continuous_batching", "transformers_continuous_batching_config"], _NO_ENGINE),
    **dict.fromkeys(
        ["vllm_importance_sampling_clip_min", "off_policy_mask_threshold", "top_entropy_quantile"], _NO_LOSS
    ),
    "save_only_model": f"without the optimizer's state {_NOT_TO_THE_BIT}",
    "ignore_data_skip": f"it would see the first prompts again, and {_NOT_TO_THE_BIT}",
    "restore_callback_states_from_checkpoint": "what has a state keeps it in each checkpoint and takes it back anyway",
    "enable_jit_checkpoint": "a signal ends a run between two rollouts and saves it as it is",
    **dict.fromkeys(["dataloader_drop_last", "dataloader_in_order", "accelerator_config"], _OUR_BATCHES),
    **dict.fromkeys(["length_column_name", "do_train", "local_rank"], "nothing here reads it"),
    **dict.fromkeys(["average_tokens_across_devices", "label_smoothing_factor", "router_aux_loss_coef"], _NO_TEXT_LOSS),
    **dict.fromkeys(["include_num_input_tokens_seen", "cast_lm_head_to_fp32"], _NO_TEXT_LOSS),
    **dict.fromkeys(["push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"], _NO_HUB),
    **dict.fromkeys(["hub_always_push", "hub_revision"], _NO_HUB),
    "save_on_each_node": _ONE_OUTPUT,
    **dict.fromkeys(["fsdp", "fsdp_config", "parallelism_config"], "ZeRO shards weights, see trainer.deepspeed"),
    "ds3_gather_for_generation": "a rollout needs the whole weights, and gathers them",
    "fp16": "half precision is bfloat16 here: trainer.bf16, model.dtype",
    "trust_remote_code": "nothing that comes with a checkpoint is executed",
    "use_cache": "rollouts are drawn by the engine of this package, which always caches",
    **dict.fromkeys(["sapo_temperature_neg", "sapo_temperature_pos"], _NO_LOSS),
    **dict.fromkeys(["vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"], _NO_LOSS),
    **dict.fromkeys(["use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"], _NO_LOSS),
    **dict.fromkeys(["entropy_coef_delta", "entropy_target"], _NO_LOSS),
    **dict.fromkeys(["use_liger_kernel", "liger_kernel_config"], _NO_LIGER),
    **dict.fromkeys(["load_best_model_at_end", "metric_for_best_model", "greater_is_better"], _NO_BEST),
    "max_tool_calling_iterations": "images are drawn without tools",
    "chat_template_kwargs": "the prompt template is UniAR's own",
    "mask_truncated_completions": "every image of a size has the same number of bits, none is truncated",
    "pad_to_multiple_of": "every image of a size has the same number of bits",
    "disable_dropout": "dropout is always off",
    "neftune_noise_alpha": "noise in the embeddings would part the update from its rollout",
    "remove_unused_columns": "the trainer reads all columns of a prompt",
    "hub_token": "the recipe is written to the run folder in clear; log in by HF_TOKEN or `hf auth login`",
    "auto_find_batch_size": "a smaller batch would break the groups of samples; lower per_device_train_batch_size",
}


@dataclasses.dataclass(frozen=True)
class Taken:
    """An argument that reaches TRL. What a resumed run says anew is what counts, over the restored state of optimizer
    and schedule too (rl/checkpoint/resume.py), unless it is `fixed`."""

    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kind: Any = None
    """its type, where TRL's own is wider than what works"""
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """values that are not offered -> why"""
    fixed: str | None = None
    """why a resumed run cannot change it"""


def _taken(kind: Any = None, *, without: Mapping[str, str] | None = None, fixed: str | None = None, **bounds: float):
    return Taken(bounds, kind, without or {}, fixed)


_NO_METRIC = "it follows an evaluation of transformers' own, which never runs here"
_IN_BACKWARD = "it changes the weights during the backward pass, before the watch has seen the gradient"
_AVERAGED = "it trains other weights than those that are evaluated, saved and exported"
_LAYERWISE = ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise")
_STATE = "the restored state is another optimizer's"

TAKEN = {
    "max_steps": _taken(ge=-1, le=10**9),
    "num_train_epochs": _taken(gt=0, le=10**9),
    **dict.fromkeys(["per_device_train_batch_size", "gradient_accumulation_steps"], _taken(ge=1, le=2**20)),
    "steps_per_generation": _taken(ge=1, le=2**20),
    "learning_rate": _taken(ge=0),
    "lr_scheduler_type": _taken(without=dict.fromkeys(["reduce_lr_on_plateau", "greedy"], _NO_METRIC)),
    "lr_scheduler_kwargs": _taken(),
    "warmup_steps": _taken(ge=0),
    "optim": _taken(
        without={
            **dict.fromkeys(["lomo", "adalomo", "apollo_adamw_layerwise", *_LAYERWISE], _IN_BACKWARD),
            **dict.fromkeys(["schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"], _AVERAGED),
        },
        fixed=_STATE,
    ),
    "optim_args": _taken(),
    "optim_target_modules": _taken(fixed=_STATE),
    "weight_decay": _taken(ge=0),
    **dict.fromkeys(["adam_beta1", "adam_beta2"], _taken(ge=0, lt=1)),
    "adam_epsilon": _taken(ge=0),
    "max_grad_norm": _taken(ge=0),
    "bf16": _taken(bool | Literal["auto"]),
    "tf32": _taken(),
    "activation_checkpointing": _taken(Asked | None),
    "gradient_checkpointing": _taken(Asked),
    **dict.fromkeys(["activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"], _taken()),
    **dict.fromkeys(["torch_compile", "torch_compile_backend"], _taken()),
    "torch_compile_mode": _taken(
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None
    ),
    "torch_empty_cache_steps": _taken(ge=1),
    "logging_strategy": _taken(),
    "logging_steps": _taken(gt=0, le=10**9),
    **dict.fromkeys(["logging_first_step", "logging_nan_inf_filter", "log_on_each_node"], _taken()),
    **dict.fromkeys(
        ["log_level", "log_level_replica"],
        _taken(Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]),
    ),
    "report_to": _taken(),
    **dict.fromkeys(["run_name", "project", "trackio_space_id", "trackio_bucket_id"], _taken()),
    "trackio_static_space_id": _taken(str | None),
    "save_strategy": _taken(Literal["steps", "no"]),
    "save_steps": _taken(le=10**9),
    "save_total_limit": _taken(ge=1, le=10**9),
    "full_determinism": _taken(),
    "use_cpu": _taken(),
    "dataloader_num_workers": _taken(ge=0, le=1024),
    **dict.fromkeys(["dataloader_pin_memory", "dataloader_persistent_workers"], _taken()),
    "dataloader_prefetch_factor": _taken(ge=1, le=2**20),
    "dataloader_multiprocessing_context": _taken(Literal["fork", "spawn", "forkserver"] | None),
    **dict.fromkeys(["ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"], _taken()),
    "ddp_bucket_cap_mb": _taken(ge=1, le=2**20),
    "ddp_backend": _taken(Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"] | None),
    "ddp_timeout": _taken(ge=1, le=10**9),
    "deepspeed": _taken(),
    "skip_memory_metrics": _taken(),
}


def check_trainer_arguments(arguments: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """The arguments, each of its type and in its range. Imports TRL, unless there is nothing to check.

    Raises UserError for what is set elsewhere, not offered, unknown, or of the wrong type, naming the right place, the
    nearest name, or what was found and what is valid.
    """

    def refuse(name: str, sentence: str) -> typing.NoReturn:
        raise UserError(f"{origin_of(('trainer', name), origins)}: trainer.{name} {sentence}.")

    hints = trl_arguments() if arguments else {}
    checked = {}
    for name, value in arguments.items():
        path = ("trainer", name)
        if name in OWNED:
            refuse(name, f"cannot be set; set {OWNED[name]} instead")
        if name not in hints:
            known = [one for one in hints if one in TAKEN]
            named = HABITS.get(f"trainer.{name}")
            hint = f" Did you mean {named!r}?" if named else did_you_mean(name, known)
            where = origin_of(path, origins)
            raise UserError(f"{where}: unknown key 'trainer.{name}', not an argument of TRL's GRPOConfig.{hint}")
        default = hints[name][1]
        if name not in TAKEN:
            if value != default or type(value) is not type(default):
                refuse(name, f"is not offered here: {REFUSED.get(name, 'it is newer than this package')}")
            continue
        taken = TAKEN[name]
        kind = kind_of(name)
        checked[name] = value if kind is None else check_type(value, kind, path, origins, taken.bounds, HABITS)
        if isinstance(value, str) and value in taken.without:
            refuse(name, f"{value} is not offered here: {taken.without[value]}")
    if isinstance(checked.get("deepspeed"), str):
        checked["deepspeed"] = home_expanded(checked["deepspeed"], ("trainer", "deepspeed"), origins)
    _check_together(checked, refuse)
    return checked


def _check_together(arguments: dict[str, Any], refuse: Any) -> None:
    if arguments.get("max_steps") == 0:
        refuse("max_steps", "is 0, which trains nothing; expected a whole number ≥ 1, or -1 to go by num_train_epochs")
    for part in (arguments.get("optim_args") or "=").split(","):
        if part.count("=") != 1:
            refuse("optim_args", f"is {arguments['optim_args']!r}, expected name=value, or several with commas between")
    for name in ("warmup_steps", "logging_steps"):
        if (value := arguments.get(name, 0)) > 1 and value != int(value):
            refuse(name, f"is {value:g}; above 1 it is a whole number of updates, below 1 a share of the run")
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if arguments.get(name) and not arguments.get("dataloader_num_workers"):
            refuse(name, f"is {arguments[name]}, which needs trainer.dataloader_num_workers above 0")
    for name in NAMES:
        if (wrong := what_is_wrong(arguments.get(name))) is not None:
            refuse(name, wrong)
    for old in (NAMES[1], f"{NAMES[1]}_kwargs"):
        new = old.replace("gradient", "activation")
        if arguments.get(new) is not None and arguments.get(old, arguments[new]) != arguments[new]:
            refuse(new, f"and its older name trainer.{old} differ; give one of them")


def kind_of(name: str) -> Any | None:
    """The type that an argument which is taken is checked against; None where GRPOConfig has to do it itself."""
    return TAKEN[name].kind or _checked_type(trl_arguments()[name][0])


@functools.cache
def trl_arguments() -> dict[str, tuple[Any, Any]]:
    """The arguments of the installed GRPOConfig: name -> (type, default)."""
    from trl import GRPOConfig

    hints = typing.get_type_hints(GRPOConfig)
    return {
        field.name: (hints[field.name], None if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(GRPOConfig)
    }


def _checked_type(hint: Any) -> Any | None:
    """The part of a type that can be checked here: a union of plain values, lists and mappings; None if there is
    more to it, which GRPOConfig then checks itself."""
    options = (
        typing.get_args(hint) if typing.get_args(hint) and typing.get_origin(hint) not in (dict, list) else (hint,)
    )
    kept = []
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum):
            values = tuple(member.value for member in option)
            return typing.Literal[values] if all(isinstance(value, str) for value in values) else None
        plain = typing.get_origin(option) or option
        if plain not in (str, int, float, bool, list, dict, type(None)):
            return None
        kept.append({list: list[Any], dict: dict[str, Any]}.get(plain, plain))
    return typing.Union[tuple(kept)]  # noqa: UP007 (built from a list)
