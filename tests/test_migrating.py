"""docs/migrating.md names settings, commands, options and headings that exist."""

import re
from pathlib import Path

import pytest
import yaml

from rewards.spec import RewardSpec
from rl.cli import COMMANDS, main
from rl.recipe import recipe_from_mapping
from rl.trainer_arguments import OWNED, _grpo_config_hints

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
SECTIONS = {"model", "data", "rollout", "decode", "evaluate", "algorithm", "trainer", "rewards"}


def named_settings() -> set[str]:
    words = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)[^`]*`", PAGE)
    return {word for word in words if word.split(".")[0] in SECTIONS}


def test_settings_exist():
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "config.md").read_text(), flags=re.MULTILINE))
    assert len(named_settings()) > 30
    for setting in named_settings():
        section, _, name = setting.partition(".")
        if section == "trainer":
            assert name in _grpo_config_hints(), setting
            assert name not in OWNED, setting
        else:
            assert setting in documented, setting


def test_rewards_of_the_example_take_these_parameters():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    recipe = recipe_from_mapping(
        {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, **yaml.safe_load(example)}
    )
    specs = [RewardSpec.from_mapping(entry) for entry in recipe.rewards]
    assert [spec.name for spec in specs] == ["hpsv2", "geneval", "ocr", "vlm_judge"]
    assert [spec.build().name for spec in specs] == [spec.name for spec in specs]


@pytest.mark.parametrize("name", ["chat", "generate", "edit", "evaluate", "train"])
def test_options_of_commands_exist(name, capsys):
    assert name in COMMANDS
    with pytest.raises(SystemExit):
        main([name, "--help"])
    offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for line in re.findall(rf"`uniar-rl {name}([^`]*)`", PAGE):
        assert set(re.findall(r"--[a-z-]+", line)) <= offered, line


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, heading = target.partition("#")
        if path.startswith("https://"):
            continue
        file = ROOT / "docs" / path if path else ROOT / "docs" / "migrating.md"
        assert file.resolve().exists(), target
        if heading:
            found = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in found}
            assert heading in slugs, target
