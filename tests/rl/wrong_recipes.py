"""Recipes that cannot work, as data: overrides of a small recipe and whole files, with what the refusal must name.

`mistyped()` and `out_of_range()` are generated from the settings themselves, the others are written down.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rl.config.sections import Recipe
from rl.config.trainer_arguments import OWNED, REFUSED, TAKEN, kind_of
from uniar.reading.settings import nested_settings
from uniar.reading.yaml_files import parse_yaml

PALETTE = ["null", "true", "nonsense", "''", "-7", "0.5", "1e400", ".nan", "[nonsense]", "{nonsense: 1}", "5000000000"]
"""values that hardly any setting takes all of, as YAML"""

ODD = ["''", "[]", "{}", "-1", "1000000", "9223372036854775807", "1e308", "'a: b'", "[null]"]
"""values that some settings take, and that others have to refuse"""


def settings() -> Iterator[tuple[str, Any, Mapping]]:
    """(key, type, bounds) of every setting of a recipe, those of nested sections too."""
    for key, field, hint in nested_settings(Recipe):
        yield key, hint, field.metadata


def arguments() -> Iterator[tuple[str, Any, dict]]:
    """The same of every argument that `trainer` takes."""
    for name, taken in TAKEN.items():
        yield f"trainer.{name}", kind_of(name), dict(taken.bounds)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, whatever its range."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is type(None) or value is None:
        return value is None and hint is type(None)
    if dataclasses.is_dataclass(hint):
        return False  # the palette's mapping has no key of any section
    kind = typing.get_origin(hint) or hint
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is list and isinstance(value, list) and typing.get_args(hint) == (dict[str, Any],):
        return False
    if isinstance(value, float) and value - value != 0:
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def mistyped() -> Iterator[tuple[str, str]]:
    """(override, key): each setting with each value of the palette that is not of its type."""
    for key, hint, _ in [*settings(), *arguments()]:
        header = dataclasses.is_dataclass(hint)  # with nothing under it changes nothing
        for text in PALETTE:
            value = parse_yaml(text, "")[0]
            if key in ("trainer", "base") or hint is None or fits(value, hint) or (header and value is None):
                continue
            if key == "evaluate.sets.NAME.rewards" and text == "[nonsense]":
                continue  # a name of a reward, of which a set without prompts says less than that it has none
            yield f"{key}={text}", key


def out_of_range() -> Iterator[tuple[str, str]]:
    for key, _, bounds in [*settings(), *arguments()]:
        for bound, beyond in (("ge", -1), ("gt", 0), ("lt", 0), ("le", 1)):
            if bounds.get(bound) is not None:
                yield f"{key}={bounds[bound] + beyond:.15g}", key


def not_offered() -> Iterator[tuple[str, str]]:
    for name in [*OWNED, *REFUSED]:
        yield f"trainer.{name}={{nonsense: 1}}", f"trainer.{name}"
    for name, taken in TAKEN.items():
        for value in taken.without:
            yield f"trainer.{name}={value}", f"trainer.{name}"


MISSPELT = [
    ("max_steps=10", "trainer.max_steps"),
    ("lr=1", "trainer.learning_rate"),
    ("trainer.lr=1", "learning_rate"),
    ("trainer.epochs=1", "num_train_epochs"),
    ("trainer.batch_size=1", "per_device_train_batch_size"),
    ("trainer.wd=1", "weight_decay"),
    ("height=64", "rollout.height"),
    ("upsampling_ratio=2", "decode.upsampling_ratio"),
    ("rollout.hieght=64", "height"),
    ("samples_per_prompts=4", "samples_per_prompt"),
    ("rollout.num_inference_steps=4", "rollout.num_inference_steps"),
    ("rolout.height=64", "rollout"),
    ("model.lora.rank=4", "model.lora.rank"),
    ("kl_control={target: 1}", "algorithm.kl_control"),
    ("lora={r: 4}", "model.lora"),
    ("rewards.0.wieght=1", "wieght"),
    ("prompts=p.jsonl", "'data.prompts'"),
    ("optim=adamw", "'trainer.optim'"),
    ("trainer.optim=adamw", "'adamw_torch'"),
    ("decode.steps=4", "'decode.num_inference_steps'"),
    ("trainer.steps=4", "'max_steps'"),
    ("steps=4", "'trainer.max_steps'"),
    ("rollout.size=64", "'rollout.height'"),
    ("rollout.cfg=2", "'rollout.guidance_scale'"),
    ("rollout.num_generations=4", "'rollout.samples_per_prompt'"),
    ("algorithm.lr=1", "'trainer.learning_rate'"),
    ("algorithm.kl_coef=1", "'algorithm.beta'"),
    ("device=cpu", "'trainer.use_cpu'"),
    ("trainer.device=cpu", "'trainer.use_cpu'"),
    ("model.lora={rank: 4}", "'model.lora.r'"),
    ("out=x", "'output_dir'"),
]

TOGETHER = [
    ("model.preset=nano", "model"),
    ("model.path=null", "model"),
    ("model={path: null, preset: null}", "model"),
    ("model.preset=nan0", "model"),
    ("model={preset: nan0}", "model.preset"),
    ("model.path=/no/such/folder", "model.path"),
    ("model={path: 'preset:nano', preset: null}", "set model.preset to 'nano'"),
    ("model.path=https://huggingface.co/a/b", "model.path: 'https://huggingface.co/a/b' is an address"),
    ("model.lora={target_modules: []}", "model.lora.target_modules"),
    ("model.lora={target_modules: [q_proj, q_prj]}", "model.lora.target_modules has 'q_prj'"),
    ("model.lora={target_modules: [norm]}", "model.lora.target_modules has 'norm'"),
    ("model.lora={target_modules: ['']}", "model.lora.target_modules has ''"),
    ("data.prompts=hf://datasets/a/b", "data.prompts: 'hf://datasets/a/b' is an address"),
    ("data.prompts=$NOBODYS_FOLDER/p.jsonl", "names the variable $NOBODYS_FOLDER"),
    ("data.prompts=/dev/zero", "data.prompts"),
    ("data.prompts=/", "data.prompts: the dataset '/' with split 'train' cannot be loaded: the library finds no data"),
    ("rewards={use: color}", "expected a list of rewards, such as [{use: NAME}]"),
    ("rewards.0.weight=1e39", "rewards.0.weight is 1e+39 (past float32)"),
    ("output_dir=.", "output_dir: '.' is the current folder"),
    ("output_dir=/", "output_dir: '/' is the current folder or one above it"),
    ("output_dir=/proc/x", "output_dir"),
    ("model.lora={dropout: 0.1}", "model.lora.dropout"),
    ("model.attention=flash_attention_2", "model.attention"),
    ("rollout.guidance=guided", "rollout.guidance_scale"),
    ("rollout.guidance_scale=2", "rollout.guidance_scale"),
    ("rollout.height=100", "rollout.height"),
    ("rollout.width=33", "rollout.width"),
    ("rollout.height=1000000", "rollout.height"),
    ("rollout.height=1024", "rollout.height"),
    ("rollout.width=2147483648", "rollout.width"),
    ("decode.upsampling_ratio=1.3", "decode.upsampling_ratio"),
    ("rollout.samples_per_prompt=3", "rollout.samples_per_prompt"),
    ("rollout.samples_per_prompt=1000000000000", "rollout.samples_per_prompt"),
    ("trainer.per_device_train_batch_size=64", "data.prompts"),
    ("decode.processes=1", "decode.processes"),
    ("decode.processes=100", "decode.processes"),
    ("algorithm={loss: gspo, ratio_level: bit}", "algorithm.ratio_level"),
    ("algorithm={loss: cispo, epsilon_high: 0.28}", "algorithm.epsilon_high"),
    ("algorithm={loss: dppo_tv, epsilon: 0.2}", "algorithm.epsilon"),
    ("algorithm={loss: dppo_tv, text: {epsilon: 0.2}}", "algorithm.text.epsilon"),
    ("algorithm={loss: cispo, text: {epsilon_high: 0.28}}", "algorithm.text.epsilon_high"),
    ("algorithm.delta=0.1", "algorithm.delta"),
    ("algorithm={beta: 0, kl_control: {target: 0.1}}", "algorithm.kl_control"),
    ("algorithm={beta: 0, reference_refresh: {every: 1}}", "algorithm.reference_refresh"),
    ("algorithm.kl_control={}", "algorithm.kl_control.target"),
    ("evaluate.ema=true", "evaluate.ema"),
    ("evaluate.early_stop={}", "evaluate.early_stop"),
    ("understanding.kl_beta=1", "understanding.kl_beta"),
    ("trainer.max_steps=0", "trainer.max_steps"),
    ("trainer.num_train_epochs=0", "trainer.num_train_epochs"),
    ("trainer={save_steps: 3, max_steps: 8, steps_per_generation: 4}", "trainer.save_steps"),
    ("trainer={save_steps: 0.5}", "trainer.save_steps"),
    ("trainer={steps_per_generation: 6, gradient_accumulation_steps: 4}", "trainer.steps_per_generation"),
    ("trainer={warmup_steps: 2.5}", "trainer.warmup_steps"),
    ("trainer={logging_steps: 2.5}", "trainer.logging_steps"),
    ("trainer={dataloader_prefetch_factor: 2}", "trainer.dataloader_prefetch_factor"),
    ("trainer={dataloader_persistent_workers: true}", "trainer.dataloader_persistent_workers"),
    ("trainer={dataloader_multiprocessing_context: spawn}", "trainer.dataloader_multiprocessing_context"),
    ("trainer={gradient_checkpointing: true, activation_checkpointing: false}", "trainer.activation_checkpointing"),
    ("trainer={gradient_checkpointing: {keep_layers: -1}}", "trainer.gradient_checkpointing is {'keep_layers': -1}"),
    ("trainer={gradient_checkpointing: {keep_layers: true}}", "trainer.gradient_checkpointing"),
    ("trainer={gradient_checkpointing: {keep: 3}}", "trainer.gradient_checkpointing"),
    ("trainer={gradient_checkpointing: {}}", "trainer.gradient_checkpointing"),
    ("trainer={activation_checkpointing: {keep_layers: 1.5}}", "trainer.activation_checkpointing"),
    ("trainer={gradient_checkpointing: 12}", "trainer.gradient_checkpointing is 12 (a whole number), expected"),
    ("trainer={gradient_checkpointing: Auto}", "trainer.gradient_checkpointing is 'Auto'"),
    ("trainer={lr_scheduler_type: constant, warmup_steps: 3}", "trainer.warmup_steps"),
    ("rewards=[]", "rewards"),
    ("rewards=[{weight: 1}]", "rewards.0.use"),
    ("rewards=[3]", "rewards.0"),
    ("rewards=[{use: colour}]", "rewards"),
    ("rewards=[{use: compressibility, qualty: 3}]", "qualty"),
    ("rewards=[{use: compressibility, clip: [2, 1]}]", "clip"),
    ("rewards=[{use: compressibility, normalize: [1]}]", "normalize"),
    ("rewards=[{use: compressibility, weight: {a: b}}]", "weight"),
    ("rewards=[{use: compressibility, retries: 99}]", "rewards.0.retries"),
    ("rewards=[{use: compressibility, tasks: [nope]}]", "rewards"),
    ("rewards=[compressibility, compressibility]", "rewards"),
    ("rewards=[{use: /no/such.py:f}]", "rewards"),
    ("rewards=[{use: no.such.module:F}]", "rewards"),
    ("rewards=[{use: '~nobody-of-this-name/x.py:f'}]", "rewards"),
    ("eval_rewards=[{use: nope}]", "eval_rewards"),
    ("rewards.7.weight=1", "rewards"),
    ("seed.x=1", "seed"),
    ("data.prompts=/no/such.jsonl", "data.prompts"),
    ("data.prompts='~/no/such.jsonl'", "data.prompts"),
    ("data.prompts='~nobody-of-this-name/p.jsonl'", "data.prompts"),
    ("evaluate.prompts=/no/such.jsonl", "evaluate.prompts"),
    ("understanding.questions=/no/such.jsonl", "understanding.questions"),
    ("understanding={kl_beta: 1, kl_questions: /no/such.jsonl}", "understanding.kl_questions"),
    (f"output_dir={'x' * 300}", "output_dir"),
    (f"output_dir=/tmp/{'é' * 200}", "output_dir"),
    (f"output_dir={'x/' * 3000}", "output_dir"),
    ("output_dir=/dev/null/run", "output_dir"),
    ("output_dir=/dev/null", "output_dir"),
]

LIBRARIES = [
    ("seed=1099511627776", "seed"),
    ("seed=4294967296", "seed"),
    ("seed=-1", "seed"),
    ("data.seed=4294967296", "data.seed"),
    ("trainer.report_to=all", "trainer.report_to"),
    ("trainer.report_to=''", "trainer.report_to is '', which does not work"),
    ("trainer.report_to=wandb", "trainer.report_to"),
    ("trainer.report_to=tensorbord", "trainer.report_to"),
    ("trainer.report_to=[tensorboard, none]", "trainer.report_to"),
    ("trainer.report_to=[1]", "trainer.report_to"),
    ("trainer.report_to=kubeflow", "trainer.report_to"),
    ("trainer.optim=adamw_torch_xla", "trainer.optim"),
    ("trainer.optim=adamw_torch_npu_fused", "trainer.optim"),
    ("trainer.optim=adamw_anyprecision", "trainer.optim"),
    ("trainer={optim: sgd, optim_args: 'nesterov=true'}", "trainer.optim_args"),
    ("trainer={optim: sgd, optim_args: 'momentum=fast'}", "trainer.optim_args"),
    ("trainer={optim: adafactor, optim_args: nonsense}", "trainer.optim_args is 'nonsense', expected name=value"),
    ("trainer={optim: adafactor, optim_args: 'a=1,b'}", "trainer.optim_args is 'a=1,b', expected name=value"),
    ("trainer={lr_scheduler_type: cosine_with_min_lr}", "trainer.lr_scheduler_type"),
    ("trainer={lr_scheduler_type: polynomial, lr_scheduler_kwargs: {lr_end: 1}}", "trainer.lr_scheduler_kwargs"),
    ("trainer={lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycles: x}}", "trainer.lr_scheduler_kwargs"),
    ("trainer={lr_scheduler_type: cosine, lr_scheduler_kwargs: {nonsense: 1}}", "trainer.lr_scheduler_kwargs"),
    ("trainer={lr_scheduler_type: warmup_stable_decay}", "trainer.lr_scheduler_type"),
    ("trainer={lr_scheduler_kwargs: '{x'}", "trainer.lr_scheduler_kwargs"),
    ("trainer={gradient_checkpointing_kwargs: {nonsense: 1}}", "trainer.gradient_checkpointing_kwargs"),
    ("trainer={gradient_checkpointing_kwargs: nonsense}", "trainer.gradient_checkpointing_kwargs"),
    ("trainer.torch_compile_backend=nonsense", "trainer.torch_compile_backend"),
    ("trainer.deepspeed=/no/such.json", "trainer.deepspeed"),
    ("trainer.deepspeed='~/no/such.json'", "trainer.deepspeed"),
    ("trainer.deepspeed={zero_optimization: {stage: 9}}", "zero_optimization.stage"),
    ("trainer.deepspeed={zero_optimization: {stage: two}}", "zero_optimization.stage"),
    ("trainer.deepspeed={zero_optimization: {stage: -1}}", "zero_optimization.stage"),
    ("trainer.deepspeed={zero_optimization: {stage: 2, nonsense: 1}}", "zero_optimization.nonsense"),
    ("trainer.deepspeed={zero_optimization: 2}", "zero_optimization"),
    ("trainer.deepspeed={zero_optimisation: {stage: 2}}", "zero_optimization"),
    ("trainer.deepspeed={train_batch_size: 3}", "train_batch_size"),
    ("trainer.deepspeed={gradient_accumulation_steps: 7}", "gradient_accumulation_steps"),
    ("trainer.deepspeed={bf16: {enabled: maybe}}", "bf16"),
    ("trainer.deepspeed={bf16: {enabled: true}, fp16: {enabled: true}}", "fp16"),
    ("trainer.deepspeed={fp16: {enabled: true}}", "fp16"),
    ("trainer.deepspeed={optimizer: {type: Nonsense}}", "optimizer"),
    ("trainer.deepspeed={optimizer: {type: AdamW, params: {lr: 3}}}", "optimizer"),
    ("trainer.deepspeed={scheduler: {type: Nonsense}}", "scheduler"),
    ("trainer.deepspeed={scheduler: {type: WarmupLR, params: {nonsense: 1}}}", "scheduler"),
    ("trainer.deepspeed={gradient_clipping: much}", "gradient_clipping"),
    ("trainer.deepspeed={}", "trainer.deepspeed"),
    ("trainer.deepspeed={bf16: true}", "bf16: a value of another type is needed"),
    ("trainer.deepspeed={zero_optimization: [1]}", "zero_optimization: a value of another type is needed"),
    ("trainer.deepspeed={wall_clock_breakdown: x}", "wall_clock_breakdown: a value of another type is needed"),
    (
        "trainer.deepspeed={zero_optimization: {stage: 3, offload_param: {device: nvme}}}",
        "zero_optimization: offload_param.nvme_path is None, expected a folder that is there",
    ),
    (
        "trainer.deepspeed={zero_optimization: {stage: 3, offload_optimizer: {device: nvme, nvme_path: /no/such}}}",
        "offload_optimizer.nvme_path is '/no/such'",
    ),
    ("trainer.deepspeed={zero_optimization: {stage: 2}}", "trainer.deepspeed needs a launcher"),
]

DEEPSPEED_FILES = {
    "zero.yaml": "zero_optimization:\n  stage: 2\n",
    "cut.json": '{"zero_optimization": {"stage":',
    "list.json": "[1]",
    "null.json": "null",
    "gone.json": '{"zero_optimization": {"stage": 2}, "amp": {"enabled": true}}',
    "empty.json": "",
    "stage.json": '{"zero_optimization": {"stage": 9}}',
    "unknown.json": '{"zero_optimization": {"stage": 2}, "gradient_acumulation_steps": 1}',
}

BASE = "model: {preset: nano}\ndata: {prompts: p.jsonl}\nrewards: [compressibility]\n"
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
FILES: dict[str, bytes] = {
    name: content.encode() if isinstance(content, str) else content
    for name, content in {
        "nothing": "",
        "a list": "- 1\n- 2\n",
        "a string": "train\n",
        "two documents": BASE + "---\n" + BASE,
        "a bomb of aliases": BASE + BOMB,
        "a chain of aliases": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 90)),
        "brackets": BASE + "x: " + "[" * 5000,
        "deep mappings": BASE + "".join(" " * i + "a:\n" for i in range(200)),
        "an alias of itself": BASE + "x: &x [*x]\n",
        "an alias of nothing": BASE + "x: *x\n",
        "a tab": BASE + "rollout:\n\theight: 64\n",
        "a key twice": BASE + "seed: 1\nseed: 2\n",
        "a section twice": BASE + "data: {prompts: q.jsonl}\n",
        "a merge key": BASE + "rollout: {<<: {height: 64}}\n",
        "a list as key": BASE + "? [a]\n: 1\n",
        "a tag": BASE + "seed: !!python/object/apply:os.getcwd []\n",
        "a tag of a value": BASE + "seed: !!binary aGk=\n",
        "a tag that does not fit": BASE + "seed: !!int three\n",
        "a tag of a bool": BASE + "seed: !!bool maybe\n",
        "thousands of digits": BASE + f"seed: {'9' * 5000}\n",
        "65 bits": BASE + "seed: 18446744073709551616\n",
        "hexadecimal": BASE + f"seed: 0x{'f' * 5000}\n",
        "a number that is infinite": BASE + "rollout: {temperature: 1e999}\n",
        "NaN": BASE + "rollout: {temperature: .nan}\n",
        "a NUL": BASE + 'output_dir: "a\\0b"\n',
        "half a surrogate pair": BASE + 'output_dir: "a\\ud800b"\n',
        "a control character": BASE + "output_dir: a\x07b\n",
        "bytes": BASE.encode() + b"output_dir: \xff\xfe\n",
        "UTF-16": BASE.encode("utf-16"),
        "a gzip": bytes.fromhex("1f8b0800000000000003") + bytes(range(256)),
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "an open quote": BASE + "output_dir: 'x\n",
        "an open bracket": BASE + "rewards: [a\n",
        "a stray percent": BASE + "output_dir: %x\n",
        "a stray at": BASE + "output_dir: @x\n",
        "a new YAML": "%YAML 9.0\n---\n" + BASE,
        "no model": "data: {prompts: p.jsonl}\nrewards: [compressibility]\n",
        "no data": "model: {preset: nano}\nrewards: [compressibility]\n",
        "no rewards": "model: {preset: nano}\ndata: {prompts: p.jsonl}\n",
        "a base that is not there": BASE + "base: gone.yaml\n",
        "a base that is a number": BASE + "base: 3\n",
        "a base that is a folder": BASE + "base: .\n",
        "a base of nobody": BASE + "base: ~nobody-of-this-name/x.yaml\n",
        "a key of three lines": BASE + '"a\\nb\\nc": 1\n',
        "large": BASE + "#" * 5_000_000,
        "no spaces": "model:{preset: nano}\n",
        "Python": "import yaml\nprint(1)\n",
        "JSON that is cut": json.dumps({"model": {"preset": "nano"}})[:-1],
    }.items()
}
