"""What works without the extras, and what is said of a package that is missing."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from support.fresh_process import ROOT, run_fresh

from rl import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"open_clip_torch": "open_clip"}
"""distributions whose module is called otherwise"""

HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from rl.cli import main
"""


def modules(*extras: str) -> set[str]:
    names = {re.match(r"[\w-]+", line)[0] for extra in extras for line in PROJECT["optional-dependencies"][extra]}
    return {MODULES.get(name, name) for name in names}


def imported(folder: str, *, at_once: bool) -> set[str]:
    """Modules of others that the files of a package of ours import: as they are loaded, or anywhere."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in tree.body if at_once else ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"uniar", "rl", "rewards", "inference"}


OWN = {"uniar": (), "rewards": ("rewards", "serve"), "rl": ("train",)}
"""the extras without which a package of ours is not used"""


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("folder", OWN)
def test_what_is_imported_is_a_dependency(folder, at_once):
    """Not what some other package happens to bring along."""
    extras = OWN[folder] if at_once else ("train", "rewards", "serve", "track")
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
    brought = packages_distributions()
    missing = {
        name: brought.get(name, ["nothing that is installed"])
        for name in imported(folder, at_once=at_once) - {"flash_attn"}
        if not {found.lower().replace("_", "-") for found in brought.get(name, ())} & declared
    }
    assert missing == {}


def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    said = ["numpy>=2", 'trl==1.16.0; extra == "train"', "open-clip-torch<4; extra == 'rewards'"]
    monkeypatch.setattr(cli, "requires", lambda name: said)
    for module, extra in (("trl.trainer", "train"), ("open_clip", "rewards")):
        assert cli._extra_with(module) == extra
    assert cli._extra_with("numpy") is cli._extra_with("mine") is None
    import_module = cli.import_module

    def without(name):
        if name == "rl.train":
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
        return import_module(name)

    monkeypatch.setattr(cli, "import_module", without)
    assert cli.main(["train", "recipe.yaml"]) == 2
    assert "train: trl is not installed; install it with `pip install 'uniar-rl[train]'`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plain_package_draws_and_reads(tmp_path):
    hidden = modules("train", "rewards", "serve", "track")
    assert {"trl", "open_clip", "fastapi", "wandb", "scipy"} <= hidden
    calls = """
assert main(["generate", "--model", "tiny", "--prompt", "a photo of a red circle", "--output", "a.png"]) == 0
assert main(["chat", "--model", "tiny", "--image", "a.png", "--prompt", "what shape is this?"]) == 0
assert main(["rewards", "score", "compressibility", "--image", "a.png"]) == 0
assert main(["rewards", "list"]) == 0
"""
    done = run_fresh(HIDDEN.format(hidden=hidden) + calls, tmp_path, ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "circle" in done.stdout
