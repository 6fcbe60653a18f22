"""Recipes: what loads, what is refused and in which words, and docs/config.md."""

import dataclasses
import re
from pathlib import Path

import pytest

from docs import config_page
from rl.config.checks import check_batches
from rl.config.recipe import load_recipe, recipe_from_mapping
from rl.config.sections import EvaluateSection, Recipe
from rl.config.trainer_arguments import OWNED, REFUSED, TAKEN, trl_arguments
from uniar.errors import UserError
from uniar.reading.settings import settings_of
from uniar.reading.yaml_files import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[2]

MINIMAL = """\
model: {preset: small}
data: {prompts: p.jsonl}
rewards:
  - use: color
    color: red
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def recipe(trainer=None, **sections) -> Recipe:
    mapping, _ = parse_yaml(MINIMAL, "test")
    return recipe_from_mapping(mapping | sections | {"trainer": trainer or {}}, "test")


# Loading -------------------------------------------------------------------------------------------------------------


def test_defaults_and_values(write):
    loaded = load_recipe(write(MINIMAL + "rollout:\n  height: 64\n  temperature: 1\ndecode:\n"))
    assert (loaded.rollout.height, loaded.rollout.width) == (64, 512)
    assert loaded.rollout.temperature == 1.0
    assert isinstance(loaded.rollout.temperature, float)
    assert loaded.rewards == [{"use": "color", "color": "red"}]
    assert loaded.decode.num_inference_steps == 14
    assert loaded.output_dir == "runs/mine"
    assert loaded.model.trainable == "full"


def test_resolved_recipe_loads_back_equal(write):
    overrides = [
        "rollout.guidance=guided",
        "rollout.guidance_scale=2.5",
        "trainer.learning_rate=1e-5",
        "trainer.run_name='1e-5'",
        "trainer.lr_scheduler_kwargs={a: [1, 0.5, null, 'no', 'true', '010', é]}",
        "model.lora={r: 4, target_modules: [q_proj]}",
        "algorithm.advantage.scale=none",
    ]
    loaded = load_recipe(write(MINIMAL), overrides)
    again = load_recipe(write(loaded.to_yaml(), "config.yaml"))
    assert again == loaded
    assert again.trainer["learning_rate"] == 1e-5
    assert again.trainer["run_name"] == "1e-5"
    assert again.output_dir == "runs/mine"
    assert again.model.trainable == "lora"


def test_overrides_read_values_as_yaml(write):
    loaded = load_recipe(
        write(MINIMAL),
        [
            "rollout.height=64",
            "rollout.show_progress=true",
            "rewards.0.weight=2",
            "eval_rewards=[{use: ocr, tasks: [ocr]}, compressibility]",
            "model.lora.r=8",
            "trainer.report_to=[wandb, tensorboard]",
            "trainer.save_strategy=no",
            "rollout.memory_budget_gb=null",
            "output_dir=runs/a=b",
        ],
    )
    assert loaded.rollout.height == 64
    assert loaded.rollout.show_progress is True
    assert loaded.rewards == [{"use": "color", "color": "red", "weight": 2}]
    assert loaded.eval_rewards == [{"use": "ocr", "tasks": ["ocr"]}, {"use": "compressibility"}]
    assert loaded.model.lora.r == 8
    assert loaded.trainer == {"report_to": ["wandb", "tensorboard"], "save_strategy": "no"}
    assert loaded.rollout.memory_budget_gb is None
    assert loaded.output_dir == "runs/a=b"


def test_base_is_merged_by_key(write, tmp_path):
    (tmp_path / "base").mkdir()
    write(MINIMAL + "rollout: {height: 64, width: 64}\ntrainer: {max_steps: 10}\n", "base/common.yaml")
    child = write("base: base/common.yaml\nrollout: {width: 96}\nrewards: [ocr]\ndecode:\ntrainer:\n")
    loaded = load_recipe(child, ["trainer.max_steps=20"])
    assert (loaded.rollout.height, loaded.rollout.width) == (64, 96)
    assert loaded.rewards == [{"use": "ocr"}]
    assert loaded.trainer == {"max_steps": 20}
    assert loaded.base is None
    assert loaded.output_dir == "runs/mine"


@pytest.mark.parametrize("name", ["uniar_sft_512", "nano", "quickstart"])
def test_shipped_recipes_load(name):
    loaded = load_recipe(ROOT / "configs" / f"{name}.yaml")
    assert loaded.evaluate.prompts is not None
    assert load_recipe(ROOT / "configs" / f"{name}.yaml", ["rollout.samples_per_prompt=4"]) != loaded


def test_reference_recipe_has_the_published_batch():
    loaded = load_recipe(ROOT / "configs" / "uniar_sft_512.yaml")
    assert check_batches(loaded, world_size=8) == 32
    assert (loaded.trainer["learning_rate"], loaded.algorithm.beta, loaded.algorithm.kl) == (5e-6, 0.01, "k3")


def test_yaml_rules():
    values, origins = parse_yaml("a: 1e-5\nb: no\nc: 010\nd: 1:30\ne: 2026-01-02\nf: true\ng: '7'\nh: -.5\ni:\n", "x")
    assert values == {"a": 1e-5, "b": "no", "c": 10, "d": "1:30", "e": "2026-01-02", "f": True, "g": "7"} | {
        "h": -0.5,
        "i": None,
    }
    assert origins[("c",)] == "x, line 3"


@pytest.mark.parametrize(
    "value", ["1e-5", "no", "true", "null", "", "010", "0x1f", "1:30", "~", "é", " a: b", "<<", "="]
)
def test_texts_survive_yaml(value):
    assert parse_yaml(dump_yaml({"k": value}), "x")[0] == {"k": value}


# Refusals ------------------------------------------------------------------------------------------------------------


def test_unknown_key_names_file_line_and_nearest(write):
    path = write(MINIMAL + "rollout:\n  height: 64\n  hieght: 64\n")
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert str(error.value) == f"{path}, line 8: unknown key 'rollout.hieght'. Did you mean 'height'?"


def test_mistake_in_the_base_names_the_base(write):
    base = write(MINIMAL + "rollout: {widht: 64}\n", "base.yaml")
    with pytest.raises(UserError, match=re.escape(f"{base}, line 6: unknown key 'rollout.widht'")):
        load_recipe(write("base: base.yaml\nrollout: {height: 64}\n"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollouts.height=64", "unknown key 'rollouts'. Did you mean 'rollout'?"),
        ("rollout.height=tall", "rollout.height is 'tall' (a string), expected a whole number ≥ 1."),
        ("rollout.height=64.0", "rollout.height is 64.0 (a number), expected a whole number ≥ 1."),
        ("rollout.height=true", "rollout.height is true, expected a whole number ≥ 1."),
        ("rollout.height=null", "rollout.height is null, expected a whole number ≥ 1."),
        ("rollout.temperature=0", "rollout.temperature is 0, expected a number ≥ 0.001."),
        ("rollout.temperature=.nan", "expected a number ≥ 0.001."),
        ("rollout.samples_per_prompt=1", "rollout.samples_per_prompt is 1, expected a whole number ≥ 2."),
        ("rollout=64", "rollout is 64 (a whole number), expected a mapping of settings."),
        ("decode.upsampling_ratio=3", "decode.upsampling_ratio is 3, expected a number ≥ 1 and ≤ 2."),
        ("data.shuffle=no", "data.shuffle is 'no' (a string), expected true or false."),
        ("algorithm.loss=grop", "Did you mean 'grpo'?"),
        ("algorithm.advantage.estimator=gae", "expected 'grpo', 'rloo' or 'gdpo'."),
        ("algorithm.ratio_level=token", "expected 'bit', 'visual_token', 'sequence' or null."),
        ("model.path=UniAR", "model needs exactly one of path and preset; found path 'UniAR' and preset 'small'."),
        ("model.preset=null", "model needs exactly one of path and preset; neither is given."),
        ("model.lora={rank: 8}", "unknown key 'model.lora.rank'."),
        ("model.lora.target_modules=q_proj", "is 'q_proj' (a string), expected a list of strings or null."),
        ("rollout.guidance=guided", "rollout.guidance_scale is 1 with rollout.guidance guided"),
        ("rollout.guidance_scale=2", "rollout.guidance_scale is 2 with rollout.guidance none, which needs 1"),
        ("algorithm={loss: gspo, ratio_level: bit}", "gspo needs sequence"),
        ("algorithm={loss: cispo, epsilon_high: 0.28}", "for cispo it is the cap of the ratio itself"),
        ("algorithm={loss: dppo_tv, ratio_level: sequence}", "dppo_tv needs bit"),
        ("algorithm={loss: dppo_tv, epsilon: 0.2}", "algorithm.epsilon has no use in dppo_tv"),
        ("algorithm.delta=0.1", "algorithm.delta has no use in grpo"),
        ("rewards=[]", "rewards is empty, expected at least one reward."),
        ("rewards=color", "rewards is 'color' (a string), expected a list of rewards, such as [color]."),
        ("rewards=[{weight: 1}]", "rewards.0.use is missing; expected a string."),
        ("rewards.0.weight=heavy", "rewards.0.weight is 'heavy' (a string), expected a number or a mapping."),
        ("rewards.0.on_error=ignore", "expected 'stop' or 'skip'."),
        ("eval_rewards=[{use: ocr, tasks: ocr}]", "eval_rewards.0.tasks is 'ocr' (a string), expected a list of"),
        ("rewards.1.weight=2", "'1' is not an index of the list rewards; valid: 0 to 0."),
        ("data.prompts.name=x", "data.prompts is 'p.jsonl', which has no key 'name' to set."),
        ("seed.x=1", "seed is {'x': 1} (a mapping), expected a whole number ≥ 0 and ≤ 4000000000."),
        ("rollout.memory_budget_gb=1e308", "rollout.memory_budget_gb is 1e+308 (past float32), expected a number > 0"),
        ("rollout.guidance_scale=0.99999999", "rollout.guidance_scale is 0.99999999, expected a number ≥ 1."),
        ("seed", "expected key=value"),
        ("rollout..height=64", "expected key=value"),
        ("seed=[1", "not valid YAML"),
        ("trainer.beta=0.1", "trainer.beta cannot be set; set algorithm.beta instead."),
        ("trainer.num_generations=8", "trainer.num_generations cannot be set; set rollout.samples_per_prompt instead."),
        ("trainer.output_dir=x", "trainer.output_dir cannot be set; set output_dir instead."),
        ("trainer.use_vllm=true", "trainer.use_vllm is not offered here: rollouts are drawn by the engine"),
        ("trainer.vllm_mode=server", "trainer.vllm_mode is not offered here"),
        ("trainer.learning_rat=1e-5", "unknown key 'trainer.learning_rat'"),
        ("trainer.learning_rat=1e-5", "Did you mean 'learning_rate'?"),
        ("trainer.learning_rate=fast", "trainer.learning_rate is 'fast' (a string), expected a number ≥ 0."),
        ("trainer.max_steps=3.5", "trainer.max_steps is 3.5 (a number), expected a whole number ≥ -1"),
        ("trainer.lr_scheduler_type=lineer", "Did you mean 'linear'?"),
        ("trainer.per_device_train_batch_size=0", "is 0, expected a whole number ≥ 1 and ≤"),
        ("trainer.save_strategy=epoch", "trainer.save_strategy is 'epoch' (a string), expected 'steps' or 'no'"),
        ("trainer.save_steps=0.1", "trainer.save_steps is 0.1, expected a whole number of updates ≥ 1."),
    ],
)
def test_bad_overrides(write, override, words):
    with pytest.raises(UserError) as error:
        load_recipe(write(MINIMAL), [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_of_overrides_name_the_command_line(write):
    for override in ("seed.x=1", "rollouts.height=64", "rewards.0.weight=heavy", "model.lora={r: 0}"):
        with pytest.raises(UserError, match=re.escape(f"command line ({override}): ")):
            load_recipe(write(MINIMAL), [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a recipe is a mapping of sections; found null."),
        ("- a\n", "a recipe is a mapping of sections; found ['a'] (a list)."),
        ("model: {preset: small}\nrewards: [ocr]\n", "data is missing; expected a mapping."),
        ("model: {preset: small}\ndata:\nrewards: [ocr]\n", "line 2: data.prompts is missing; expected a string."),
        (MINIMAL + "seed: 1\nseed: 2\n", "line 7: the key 'seed' is given twice."),
        (MINIMAL + "rollout:\n  height: 64\n  height: 32\n", "line 8: the key 'rollout.height' is given twice."),
        (MINIMAL + "trainer: {run_name: !!python/object/apply:os.getcwd []}\n", "line 6: the tag"),
        (MINIMAL + "trainer: {run_name: !!python/name:os.getcwd ''}\n", "line 6: the tag"),
        (MINIMAL + "rollout: {height: [}\n", "line 6: not valid YAML"),
        (MINIMAL + "rollout: &a {<<: *a}\n", "line 6: "),
        (MINIMAL + "trainer: &a {report_to: [*a]}\n", "line 6: an alias refers to the list or mapping"),
        (MINIMAL + "rollout:\n\theight: 64\n", "line 7: not valid YAML"),
        (MINIMAL + "seed: \x07\n", "not valid YAML"),
        (MINIMAL + "base: gone.yaml\n", "line 6: the base 'gone.yaml' does not exist"),
        (MINIMAL + "base: mine.yaml\n", "line 6: the base 'mine.yaml' builds on this recipe itself."),
        (MINIMAL + "base: 3\n", "line 6: base is 3, expected the path of a recipe."),
    ],
)
def test_bad_files(write, text, words):
    path = write(text)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"The recipe '.*gone.yaml' does not exist"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes("model:".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"the recipe '.*binary.yaml' is not text in UTF-8 but looks like UTF-16LE"):
        load_recipe(tmp_path / "binary.yaml")


# Numbers that must agree ---------------------------------------------------------------------------------------------


def test_check_batches():
    trainer = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    assert check_batches(recipe(trainer, rollout={"samples_per_prompt": 8}), world_size=2) == 3
    with pytest.raises(UserError) as error:
        check_batches(recipe(trainer, rollout={"samples_per_prompt": 16}), world_size=2)
    assert str(error.value) == (
        "test: rollout.samples_per_prompt 16 does not divide the 24 samples of a rollout "
        "(trainer.per_device_train_batch_size 4 × 2 processes × trainer.gradient_accumulation_steps 3); "
        "nearest valid: rollout.samples_per_prompt 12 or 24, or trainer.gradient_accumulation_steps 2 or 4."
    )
    for valid in ({"samples_per_prompt": 12}, {"samples_per_prompt": 24}):
        check_batches(recipe(trainer, rollout=valid), world_size=2)
    for valid in (2, 4):
        check_batches(recipe(trainer | {"gradient_accumulation_steps": valid}), world_size=2)


def test_check_batches_counts_steps_per_generation_and_prompts():
    trainer = {"per_device_train_batch_size": 2, "steps_per_generation": 8, "max_steps": 16}
    longer = recipe(trainer, rollout={"samples_per_prompt": 4})
    assert check_batches(longer, world_size=1, prompt_count=4) == 4
    with pytest.raises(UserError, match="has 3 prompts, fewer than the 4 that a rollout takes"):
        check_batches(longer, world_size=1, prompt_count=3)


def test_check_batches_agrees_with_trl():
    """The default batch size is TRL's own, and what passes here passes there."""
    from trl import GRPOConfig

    for group in range(2, 20):
        mine, trl = True, True
        try:
            check_batches(recipe(rollout={"samples_per_prompt": group}), world_size=1)
        except UserError:
            mine = False
        try:
            GRPOConfig(num_generations=group, use_cpu=True, bf16=False)
        except ValueError:
            trl = False
        assert mine == trl, group


def test_checkpoints_fall_between_rollouts():
    # 4 micro-batches a rollout, used twice, 2 of them an update: a rollout serves 4 updates.
    trainer = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 20}
    twice = {"num_iterations": 2}
    recipe(trainer | {"save_steps": 8}, algorithm=twice)
    with pytest.raises(UserError, match=r"save_steps is 10, .* serves 4 updates; nearest valid: 8 or 12"):
        recipe(trainer | {"save_steps": 10}, algorithm=twice)
    with pytest.raises(UserError, match=r"max_steps is 22, .* nearest valid: 20 or 24"):
        recipe(trainer | {"save_steps": 8, "max_steps": 22}, algorithm=twice)
    with pytest.raises(UserError, match=r"save_steps is 500 \(its default\), .* nearest valid: 498 or 501"):
        recipe({}, algorithm={"num_iterations": 3})
    recipe({"save_strategy": "no", "max_steps": 7}, algorithm={"num_iterations": 3})


def test_updates_divide_a_rollout():
    with pytest.raises(UserError, match=r"nearest valid trainer.steps_per_generation: 4 or 8"):
        recipe({"steps_per_generation": 6, "gradient_accumulation_steps": 4})
    recipe({"steps_per_generation": 2, "gradient_accumulation_steps": 4})  # an update of two rollouts


# Documents -----------------------------------------------------------------------------------------------------------


def test_config_docs_are_current():
    assert config_page.PATH.read_text(encoding="utf-8") == config_page.render(), "python -m docs.config_page"


def test_every_setting_is_documented():
    page = config_page.PATH.read_text(encoding="utf-8")
    for field in settings_of(EvaluateSection):
        assert f"| `evaluate.{field.name}` |" in page
    assert all(field.metadata["help"].endswith(".") for field in settings_of(Recipe))
    assert len(settings_of(Recipe)) == len(dataclasses.fields(Recipe)) - 3  # all but `source`, `origins` and `settled`


def test_every_argument_of_the_installed_libraries_has_been_decided_upon():
    """One that a new transformers or TRL adds has to be put into a table: taken, refused, or owned by another key."""
    from transformers import TrainingArguments

    known = set(trl_arguments())
    assert {field.name for field in dataclasses.fields(TrainingArguments)} <= known
    assert known - {*OWNED, *REFUSED, *TAKEN} == set()
    assert len({*OWNED, *REFUSED, *TAKEN}) == len(OWNED) + len(REFUSED) + len(TAKEN)


@pytest.mark.parametrize("home", ["~", "$HOME"])
def test_home_folders_are_expanded_in_every_path_of_a_recipe(home, write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(MINIMAL, "base.yaml")
    write(f"base: {home}/base.yaml\n", "mine.yaml")
    overrides = [
        "output_dir=~/run",
        "data={prompts: 'datasets:~/saved:train', image_root: ~/pictures}",
        "evaluate.prompts=~/held.jsonl",
        "rewards=[{use: '~/mine.py:f', weights: ~/w.pt}, '~/other.py:g']",
        "trainer.deepspeed=~/zero.json",
        "model={path: ~/checkpoint, preset: null}",
    ]
    loaded = load_recipe("~/mine.yaml", [override.replace("~", home) for override in overrides])
    assert loaded.output_dir == f"{tmp_path}/run"
    assert (loaded.data.prompts, loaded.data.image_root) == (f"datasets:{tmp_path}/saved:train", f"{tmp_path}/pictures")
    assert loaded.evaluate.prompts == f"{tmp_path}/held.jsonl"
    assert loaded.rewards[0] == {"use": f"{tmp_path}/mine.py:f", "weights": f"{tmp_path}/w.pt"}
    assert loaded.rewards[1] == {"use": f"{tmp_path}/other.py:g"}
    assert loaded.trainer["deepspeed"] == f"{tmp_path}/zero.json"
    assert loaded.model.path == f"{tmp_path}/checkpoint"
    with pytest.raises(UserError, match=r"output_dir: '\$NOBODYS_FOLDER/x' names the variable \$NOBODYS_FOLDER, which"):
        load_recipe("~/mine.yaml", ["output_dir=$NOBODYS_FOLDER/x"])


@pytest.mark.parametrize("character", ["\x07", "\x1b", "\x7f", "\uffff"])
def test_a_character_that_yaml_does_not_allow_is_shown_as_python_writes_it(character):
    shown = {"\uffff": r"'\uffff'"}.get(character, rf"'\x{ord(character):02x}'")
    with pytest.raises(UserError) as error:
        parse_yaml(f"a: 1\nb: x{character}y\n", "recipe.yaml")
    assert str(error.value) == f"recipe.yaml, line 2: not valid YAML: the character {shown} is not allowed."


def test_what_earlier_runs_wrote_is_passed_over_where_it_changes_nothing(write):
    path = write(MINIMAL)
    assert load_recipe(path, ["model.lora={r: 4, dropout: 0.0}"]).model.lora.r == 4
    with pytest.raises(UserError, match=r"unknown key 'model.lora.dropout'"):
        load_recipe(path, ["model.lora={r: 4, dropout: 0.1}"])


def test_a_base_is_named_in_a_file(write):
    with pytest.raises(UserError, match=r"command line \(base=x.yaml\): base is read from a recipe's file alone"):
        load_recipe(write(MINIMAL), ["base=x.yaml"])
