"""Rewards that an installed package brings, through the entry-point group `uniar_rl.rewards`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rewards import RewardSuite
from rewards.contract.registry import ENTRY_POINTS, installed_rewards, origin_of, reward_names
from rl.cli import main
from uniar.errors import UserError

CODE = '''
"""Rewards of another package."""

from rewards import Reward


class Shine(Reward):
    """How bright the first pixel is.

    Args:
        power: of the brightness.
    """

    def __init__(self, power: float = 1.0):
        self.power = power

    def score(self, batch):
        return [(image.convert("L").getpixel((0, 0)) / 255) ** self.power for image in batch.images]


def letters(prompts, images):
    """Letters of the prompt."""
    return [len(prompt) for prompt in prompts]


def no_reward():
    pass


class Unrelated:
    pass
'''


def install(folder, package, entries, code=CODE):
    """What pip leaves in a folder of packages."""
    folder.mkdir(exist_ok=True)
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{module}.py,,\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINTS}]", *lines, "[console_scripts]", "x = y:z"]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages on the path."""
    folder = tmp_path / "site-packages"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    installed_rewards.cache_clear()
    yield folder
    installed_rewards.cache_clear()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_rewards_of_a_package_are_known_by_name(site, capsys):
    install(site, "shiny-rewards", {"shine": "shiny_rewards:Shine", "letters": "shiny_rewards:letters"})
    assert {"shine", "letters", "color"} <= set(reward_names())
    assert "shiny_rewards" not in sys.modules  # imported when one of them is used
    assert (origin_of("shine"), origin_of("color")) == ("shiny-rewards", "built in")
    suite = RewardSuite.from_recipe(["letters", {"use": "shine", "power": 2, "weight": 0.5}])
    assert suite.names == ("letters", "shine")
    assert suite.rewards[1].power == 2.0
    assert main(["rewards", "list"]) == 0
    assert "shine            (shiny-rewards) How bright the first pixel is\n" in capsys.readouterr().out
    assert main(["rewards", "check", "shine"]) == 0
    with pytest.raises(UserError, match=r"unknown parameter 'powr'.*Did you mean 'power'"):
        RewardSuite.from_recipe([{"use": "shine", "powr": 2}])
    with pytest.raises(UserError, match=r"known: .*shine.*Did you mean 'shine'"):
        RewardSuite.from_recipe(["shin"])


def test_in_a_process_of_its_own(tmp_path):
    """As a user has it: the package is there when Python starts, and a command names its reward."""
    install(tmp_path / "site", "shiny-rewards", {"shine": "shiny_rewards:Shine"})
    Image.new("RGB", (2, 2), (51, 51, 51)).save(tmp_path / "dark.png")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path / "site")])
    done = subprocess.run(
        [sys.executable, "-m", "rl.cli", "rewards", "score", "shine", "power=2", "--image", "dark.png"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["0.04", "dark.png"]


def test_a_package_cannot_replace_a_reward_of_this_project(site):
    install(site, "shiny-rewards", {"color": "shiny_rewards:Shine", "shine": "shiny_rewards:Shine"})
    assert origin_of("color") == "built in"
    [reward] = RewardSuite.from_recipe([{"use": "color", "color": "red"}]).rewards
    assert type(reward).__module__ == "rewards.pixels.color"


def test_two_packages_with_the_same_name_are_told_apart(site, capsys):
    install(site, "shiny-rewards", {"shine": "shiny_rewards:Shine"})
    install(site, "other-rewards", {"shine": "other_rewards:Shine"})
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe(["shine"])
    for part in ("shiny_rewards:Shine (shiny-rewards)", "other_rewards:Shine (other-rewards)", "package.module:Class"):
        assert part in str(caught.value)
    assert RewardSuite.from_recipe(["other_rewards:Shine"]).names == ("Shine",)
    assert main(["rewards", "list"]) == 0  # which goes on
    assert "cannot be used: the reward name 'shine' is that of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("shiny_rewards:Shine", "import no_such_package\n", "does not import: ModuleNotFoundError: .*no_such_package"),
        ("shiny_rewards:Shine", "def f(:\n", "does not import: SyntaxError"),
        ("shiny_rewards:Shine", "raise SystemExit(3)\n", "does not import: SystemExit"),
        ("shiny_rewards:Shne", CODE, "does not import: AttributeError"),
        ("shiny_rewards:Unrelated", CODE, "package shiny-rewards: Unrelated is not a reward"),
    ],
)
def test_a_package_that_is_broken_is_named(site, value, code, message, capsys):
    install(site, "shiny-rewards", {"shine": value}, code)
    with pytest.raises(UserError, match=message) as caught:
        RewardSuite.from_recipe(["shine"])
    assert "shiny-rewards" in str(caught.value)
    assert main(["rewards", "list"]) == 0
    listed = capsys.readouterr().out
    assert "cannot be used: " in listed
    assert "needs rapidfuzz" in listed  # the others are there
