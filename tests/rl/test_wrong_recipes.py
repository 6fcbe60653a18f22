"""Wrong recipes by the hundred through the command line: exit code 2, one sentence with the key and where it stands, no
traceback, before any weight is loaded."""

import json
import os
import re
from pathlib import Path

import pytest
from support.training_runs import changed, small_recipe
from wrong_recipes import (
    DEEPSPEED_FILES,
    FILES,
    LIBRARIES,
    MISSPELT,
    ODD,
    TOGETHER,
    arguments,
    mistyped,
    not_offered,
    out_of_range,
    settings,
)

import rl.train
from rl.cli import main
from rl.config.habits import HABITS


class Loaded(BaseException):
    """The recipe was taken for one that works."""


@pytest.fixture(scope="module")
def recipe(nano_checkpoint, tmp_path_factory) -> Path:
    """The file of a recipe that works."""
    folder = tmp_path_factory.mktemp("recipe")
    small = changed(small_recipe(nano_checkpoint, folder), trainer={"save_strategy": "no", "max_steps": 2})
    small["rewards"] = [{"use": "compressibility"}]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(small, indent=1))
    return path


@pytest.fixture
def attempt(monkeypatch, capsys):
    """Runs `uniar-rl train`; what it said in its one sentence, or None where it went on to load weights."""

    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr(rl.train, "load_decoder", load)
    monkeypatch.setattr(rl.train, "load_policy", load)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(path: Path, *overrides: str) -> str | None:
        capsys.readouterr()
        try:
            assert main(["train", str(path), *overrides]) == 2, overrides
        except Loaded:
            return None
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniar-rl train: ")]
        assert len(said) == 1, (overrides, said)
        assert "Traceback" not in said[0]
        return said[0].removeprefix("uniar-rl train: ")

    return run


def test_the_recipe_itself_works(recipe, attempt):
    assert attempt(recipe) is None


def require_refused(cases, recipe, attempt) -> None:
    wrong = []
    for override, key in cases:
        said = attempt(recipe, override)
        place = f"command line ({' '.join(override.split())}): "[:60]  # a long one is cut
        at_home = said is not None and (said.startswith(place) or str(recipe) in said)
        if not at_home or key not in (said.partition("): ")[2] if said.startswith(place) else said):
            wrong.append((override, said))
    assert not wrong


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 6))])
def test_generated(part, recipe, attempt):
    """Types and ranges of every setting, and every argument that is not offered; the other parts when asked."""
    cases = [*mistyped(), *out_of_range(), *not_offered()]
    assert len(cases) > 1500
    require_refused(cases[part::6], recipe, attempt)


@pytest.mark.parametrize("table", [MISSPELT, TOGETHER, LIBRARIES], ids=["misspelt", "together", "libraries"])
def test_written_down(table, recipe, attempt):
    require_refused(table, recipe, attempt)


def test_names_by_habit_lead_to_settings_and_are_none_themselves():
    known = {key for key, _, _ in [*settings(), *arguments()]} | {"adamw_torch"}
    assert set(HABITS.values()) <= known
    assert not known & set(HABITS)


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path, attempt):
    path = tmp_path / "mine.yaml"
    path.write_bytes(FILES[name])
    said = attempt(path)
    assert said is not None
    assert str(path) in said


@pytest.mark.parametrize("name", DEEPSPEED_FILES)
def test_deepspeed_files(name, recipe, tmp_path, attempt):
    (tmp_path / name).write_text(DEEPSPEED_FILES[name])
    said = attempt(recipe, f"trainer.deepspeed={tmp_path / name}")
    assert "trainer.deepspeed" in said.partition("): ")[2]
    assert name in said.partition("): ")[2]


def test_the_line_of_the_file_is_named(recipe, tmp_path, attempt):
    """Where a setting stands in the file, not on the command line; found when the recipe is read, and later."""
    whole = json.loads(recipe.read_text())
    for section, key, value in (
        ("rollout", "height", "tall"),
        ("rollout", "height", 1024),
        ("trainer", "optim", "adamw_torch_xla"),
        ("trainer", "deepspeed", {"zero_optimization": {"stage": 9}}),
        ("data", "prompts", "/no/such.jsonl"),
        ("model", "path", "/no/such/folder"),
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(changed(whole, **{section: {key: value}}), indent=1))
        line = 1 + next(
            i for i, text in enumerate(path.read_text().splitlines()) if text.strip().startswith(f'"{key}"')
        )
        assert attempt(path).startswith(f"{path}, line {line}: {section}.{key}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written(recipe, tmp_path, attempt):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "output_dir: " in attempt(recipe, f"output_dir={tmp_path / 'closed' / 'run'}")


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(ODD)))])
def test_no_value_of_any_setting_is_a_traceback(recipe, attempt, part):
    """Whatever is neither refused nor wrong goes on to load weights: no third way out. The other values when asked."""
    refused = 0
    for number, (key, _, _) in enumerate([*settings(), *arguments()]):
        said = attempt(recipe, f"{key}={ODD[(number + part) % len(ODD)]}")
        refused += said is not None
        assert said is None or re.search(r"[.?!)]$", said), said
    assert refused > 50


def test_passes_that_fall_into_one_update_are_refused(recipe, attempt):
    said = attempt(
        recipe,
        "algorithm.num_iterations=2",
        "trainer={gradient_accumulation_steps: 4, steps_per_generation: 2, max_steps: 4, save_strategy: no}",
    )
    assert "algorithm.num_iterations is 2" in said
    for accumulation in (1, 2):  # each pass ends with an update
        trainer = f"{{gradient_accumulation_steps: {accumulation}, steps_per_generation: 2, save_strategy: no}}"
        assert attempt(recipe, "algorithm.num_iterations=2", f"trainer={trainer}") is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("yield record.prompt", "yielded str; an episode yields Draw or Write (line 5)"),
        ("yield Draw(record.metadata['size'])", "raised KeyError"),
        ("return\n    yield", "ended without a turn"),
        ("yield Draw(record.prompt, size=(33, 32))", "height 33 is not a multiple of 32"),
        ("record.metadata.update(seen=1)\n    yield Draw(record.prompt)", None),
    ],
)
@pytest.mark.parametrize(
    "override",
    ["rollout.episodes={episodes}", "evaluate.sets={{mine: {{prompts: {prompts}, episodes: {episodes}}}}}"],
    ids=["training", "held out"],
)
def test_an_episode_that_fails_at_once(override, body, said, recipe, tmp_path, attempt):
    episode = tmp_path / "mine.py"
    episode.write_text(f"from rl.episodes.requests import Draw\n\n\ndef mine(record):\n    {body}\n")
    (tmp_path / "held_out.txt").write_text("a cat\n")
    words = {"episodes": f"{{default: {episode}:mine}}", "prompts": tmp_path / "held_out.txt"}
    found = attempt(recipe, override.format(**words))
    assert (found is None) if said is None else (f"the episode {episode}:mine" in found and said in found)
