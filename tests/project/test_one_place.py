"""What is known in one file stays there: the engine's private fields, the names of a checkpoint's files, …"""

import ast
import re
from pathlib import Path

import pytest

from rl.checkpoint import layout

ROOT = Path(__file__).parents[2]
FILES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for top in ("uniar", "rewards", "rl")
    for path in (ROOT / top).rglob("*.py")
}
TINY = "rl/tiny/"  # an example, which makes a checkpoint as it is released, and none of a training
RL = {name: text for name, text in FILES.items() if name.startswith("rl/") and not name.startswith(TINY)}
ENGINE, LAYOUT = "rl/distributed/engine.py", "rl/checkpoint/layout.py"

PRIVATE = (
    r"\bds_[a-z]+|_hp_mapping|lp_fragment|hp_fragment|GatheredParameters|safe_get_|deepspeed_plugin|is_deepspeed|_zero3_"
    r"|last_batch_iteration|fp32_flat|single_partition|_states\.pt|global_step\*|__compatible_ops__|prepare_deepspeed\("
    r'|"latest"|"overflow"|\.overflow\b'
)
LAYOUT_NAMES = {value for value in vars(layout).values() if isinstance(value, str)} - {layout.__doc__, *vars(layout)}


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        (PRIVATE, {ENGINE}),
        (r"(?:from|import) deepspeed\b", {ENGINE, "rl/trainer/deepspeed_check.py"}),  # the second reads a user's JSON
    ],
)
def test_the_engine_is_known_in_one_file(pattern, files):
    assert {name for name, text in RL.items() if re.search(pattern, text)} == files


def literals(node: ast.AST):
    """Texts that stand where a file's name would: with a dot or dash anywhere, else behind a `/` or as `name = …`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and re.search("[.-]", inner.value):
            yield inner.value
        elif isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Div) and isinstance(inner.right, ast.Constant):
            yield inner.right.value
        elif isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == "name":
            yield getattr(inner.value, "value", None)


def test_the_files_of_a_checkpoint_are_named_in_one_file():
    assert {"config.yaml", "final", "manifest.json", "ema", "rng_state_*.pth", "watch"} <= LAYOUT_NAMES
    found = {name: LAYOUT_NAMES.intersection(literals(ast.parse(text))) for name, text in RL.items() if name != LAYOUT}
    assert not {name: names for name, names in found.items() if names}


@pytest.mark.parametrize("name", ["DTYPES", "Estimator", "Sample", "DrawSettings", "RewardSpec", "RECIPE_KEYS"])
def test_a_name_means_one_thing(name):
    definition = re.compile(rf"^(?:class {name}\b|{name}(?:: .*)? = )", re.MULTILINE)
    assert len([file for file, text in FILES.items() if definition.search(text)]) == 1


def test_yaml_is_read_in_one_file():
    reads = re.compile(r"yaml\.(?:safe_load|load|SafeLoader|full_load|unsafe_load)")
    assert [file for file, text in FILES.items() if reads.search(text)] == ["uniar/reading/yaml_files.py"]
