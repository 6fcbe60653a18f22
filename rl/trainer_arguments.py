"""The `trainer` section: TRL's and transformers' argument names, less those that a recipe sets elsewhere."""

import dataclasses
import enum
import functools
import typing
from typing import Any

from rl.settings import Origins, check_type, origin_of
from uniar.errors import UserError, did_you_mean

# Arguments that a section of the recipe owns -> where they are set.
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
}

_NO_ENGINE = "rollouts are drawn by the engine of this package, see the section rollout"
_NO_FILTER = "every visual bit is sampled from its own probability, without filters or penalties"
_NO_LOSS = "it belongs to a loss that is not offered here, see algorithm.loss"
_NO_LIGER = "its kernels are for text logits, not for visual bits"
_NO_BEST = "evaluations choose no checkpoint; those that are kept stay in the run folder"

# Arguments without a use here -> why.
UNUSED = {
    **dict.fromkeys(["top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"], _NO_FILTER),
    **dict.fromkeys(["cache_implementation", "use_vllm", "use_transformers_paged"], _NO_ENGINE),
    **dict.fromkeys(["use_transformers_continuous_batching", "transformers_continuous_batching_config"], _NO_ENGINE),
    **dict.fromkeys(
        ["vllm_importance_sampling_clip_min", "off_policy_mask_threshold", "top_entropy_quantile"], _NO_LOSS
    ),
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


def check_trainer_arguments(arguments: dict[str, Any], origins: Origins) -> None:
    """Refuse what is set elsewhere, unknown, or of the wrong type. Imports TRL, unless there is nothing to check.

    Raises UserError naming the right place, the nearest name, or what was found and what is valid.
    """
    for name in arguments:
        where = origin_of(("trainer", name), origins)
        if name in OWNED:
            raise UserError(f"{where}: trainer.{name} is set under {OWNED[name]}.")
        reason = UNUSED.get(name) or (_NO_ENGINE if name.startswith("vllm_") else None)
        if reason:
            raise UserError(f"{where}: trainer.{name} has no use here: {reason}.")
    if not arguments:
        return
    hints = _grpo_config_hints()
    for name, value in arguments.items():
        path = ("trainer", name)
        where = origin_of(path, origins)
        if name not in hints:
            hint = did_you_mean(name, [known for known in hints if known not in OWNED and known not in UNUSED])
            raise UserError(f"{where}: unknown key 'trainer.{name}', not an argument of TRL's GRPOConfig.{hint}")
        if name in _COUNTS:
            check_type(value, int, path, origins, {"ge": 1})
        elif (kind := _checked_type(hints[name])) is not None:
            check_type(value, kind, path, origins)
    if arguments.get("save_strategy", "steps") not in ("steps", "no"):
        raise UserError(
            f"{origin_of(('trainer', 'save_strategy'), origins)}: trainer.save_strategy is "
            f"{arguments['save_strategy']!r}, expected 'steps' or 'no': checkpoints must fall between rollouts."
        )


def may_be_set(name: str) -> bool:
    """Whether a recipe may have an argument of TRL's under `trainer`."""
    return not (name in OWNED or name in UNUSED or name.startswith("vllm_"))


_COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")


@functools.cache
def _grpo_config_hints() -> dict[str, Any]:
    """The arguments of GRPOConfig and their types."""
    from trl import GRPOConfig

    hints = typing.get_type_hints(GRPOConfig)
    return {field.name: hints[field.name] for field in dataclasses.fields(GRPOConfig)}


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
