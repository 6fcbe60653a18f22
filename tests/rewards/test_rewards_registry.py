"""`use:` and the keys of a recipe entry: what they resolve to, and one clear sentence where they do not."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from rewards import Reward, RewardSpec, RewardSuite, register_reward
from rewards.contract.parameters import bind_parameters
from rewards.contract.registry import resolve, reward_names
from rewards.models.model_reward import ModelReward
from rewards.pixels.color import Color
from rl.config.recipe import recipe_from_mapping
from uniar.errors import UserError
from uniar.reading.plugins import current_name, load_plugin

PLUGIN = """
from dataclasses import dataclass
from rewards import Reward

class Constant(Reward):
    def __init__(self, value: float = 1.0):
        self.value = value

    def score(self, batch):
        return [self.value] * len(batch)

@dataclass
class Field(Reward):  # dataclasses look their module up in sys.modules
    value: float

    def score(self, batch):
        return [self.value] * len(batch)

def zero(prompts, images):
    return [0.0] * len(prompts)

class NotOne:
    pass

class NoScore(Reward):
    pass

NUMBER = 3
"""


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    return file


def recipe_error(*entries, **settings):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe(entries, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# use


def test_names_are_listed_and_resolved_without_importing_what_is_not_used():
    code = (
        "import sys; from rewards.contract.registry import reward_names, resolve; "
        "assert {'clip_score', 'color', 'compressibility', 'ocr'} <= set(reward_names()); "
        "from rewards import RewardSuite; RewardSuite.from_recipe(['clip_score', 'ocr', 'color']); "
        "heavy = {'open_clip', 'timm', 'rapidocr', 'onnxruntime', 'rapidfuzz', 'rl'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_three_ways_to_name_a_reward(plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(plugin.parent))
    assert resolve("color") is Color
    assert resolve("rewards.pixels.color:Color") is Color
    assert resolve(f"{plugin}:Constant").__name__ == "Constant"
    assert resolve(f"{plugin}:zero")([], []) == []
    assert resolve("plugin:Constant").__name__ == "Constant"
    assert RewardSpec(f"{plugin}:Field", params={"value": 2}).build().value == 2.0


def test_a_file_is_loaded_once(plugin):
    assert resolve(f"{plugin}:Constant") is resolve(f"{plugin}:Constant")


def test_a_relative_path_is_looked_up_here_then_beside_the_recipe(plugin, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "plugin.py does not exist (looked for" in recipe_error("plugin.py:Constant")
    [reward] = RewardSuite.from_recipe(["plugin.py:Constant"], folder=plugin.parent).rewards
    assert reward.name == "Constant"


def test_an_unknown_name_is_refused_with_the_nearest():
    message = recipe_error({"use": "colour"})
    assert "there is no reward 'colour'" in message
    assert message.endswith("Did you mean 'color'?")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("x = 1\nimport a_package_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_package_that_is_not_"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("\n\nraise RuntimeError('no\\nluck')\n", "RuntimeError: no luck (broken.py, line 3)"),
        ("import sys; sys.exit(3)\n", "SystemExit: 3 (broken.py, line 1)"),
    ],
)
def test_a_plug_in_that_does_not_import_names_file_cause_and_line(tmp_path, text, cause):
    file = tmp_path / "broken.py"
    file.write_text(text)
    message = recipe_error({"use": f"{file}:Mine"})
    assert f"plug-in {file} does not import: {cause}" in message
    file.write_text("def Mine(prompts, images):\n    return [1.0] * len(prompts)\n")
    assert RewardSuite.from_recipe([f"{file}:Mine"]).names == ("Mine",)  # mended, it loads: nothing half-made is kept


def test_a_module_that_does_not_import_is_named():
    message = recipe_error("no_such_package.rewards:Mine")
    assert "plug-in no_such_package.rewards does not import: ModuleNotFoundError: No module named 'no_such_p" in message
    assert "neither a module nor a .py file" in recipe_error("my rewards/file:Mine")


FORMER, OURS = "tiny.shapes:Shapes", "rl.tiny.shapes:Shapes"


@pytest.mark.parametrize("beside", [(), ("tiny.py",), ("tiny/__init__.py",), ("tiny/shapes/red.png",)])
def test_the_reward_of_uniar_tiny_is_found_by_its_former_name(beside, tmp_path, monkeypatch):
    from rl.tiny.shapes import Shapes

    for file in beside:  # a user's own `tiny`, without `shapes`, which is not even run
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert current_name(FORMER) == OURS
    assert resolve(FORMER) is resolve(OURS) is Shapes
    assert RewardSuite.from_recipe([{"use": "rank", "reward": FORMER}]).names == ("rank",)


@pytest.mark.parametrize("package", [True, False])
def test_a_users_own_module_of_that_name_is_theirs(package, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/shapes.py").write_text("def Shapes(prompts, images):\n    return [0.5] * len(prompts)\n")
    if package:
        (tmp_path / "tiny/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert current_name(FORMER) == FORMER
    assert not {"tiny", "tiny.shapes"} & set(sys.modules)  # nothing ran to know that
    try:
        assert load_plugin(FORMER)(["a"], [None]) == [0.5]
        assert current_name(FORMER) == FORMER
        recipe = recipe_from_mapping({"model": {"preset": "nano"}, "data": {"prompts": "p"}, "rewards": [FORMER]})
        assert recipe.rewards == [{"use": FORMER}]
    finally:
        for name in ("tiny", "tiny.shapes"):
            sys.modules.pop(name, None)


def test_the_former_name_of_uniar_tinys_package_is_answered_with_the_new_one(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from tiny.detector import detect\n")
    for use in (f"{file}:Mine", "tiny.detector:detect"):
        message = recipe_error({"use": use, "name": "mine"})
        assert "ModuleNotFoundError: No module named 'tiny" in message
        assert "; UniAR-Tiny's package is called rl.tiny since version 0.2" in message


def test_what_is_no_reward_is_refused(plugin):
    assert "has no 'Constan'. Did you mean 'Constant'?" in recipe_error(f"{plugin}:Constan")
    assert "does not say which reward of the file" in recipe_error(str(plugin))
    assert "NotOne is not a reward: it must derive from rewards.Reward" in recipe_error(f"{plugin}:NotOne")
    assert "NoScore has no score method" in recipe_error(f"{plugin}:NoScore")
    assert "3 is not a reward" in recipe_error({"use": f"{plugin}:NUMBER", "name": "number"})


def test_registered_rewards_are_known_by_name(monkeypatch):
    monkeypatch.setattr("rewards.contract.registry._registered", {})

    @register_reward("test_reward")
    class Registered(Reward):
        def score(self, batch):
            return [0.0] * len(batch)

    assert resolve("test_reward") is Registered
    assert "test_reward" in reward_names()
    register_reward("test_reward")(Registered)  # the same again: fine
    with pytest.raises(UserError, match="'test_reward' is taken by"):
        register_reward("test_reward")(Color)
    with pytest.raises(UserError, match=r"'ocr' is taken by rewards.ocr.reward:OCR"):
        register_reward("ocr")(Registered)
    with pytest.raises(UserError, match="without ':'"):
        register_reward("a:b")(Registered)
    with pytest.raises(UserError, match="must derive from"):
        register_reward("test_other")(dict)


# The keys that every reward has


def test_a_full_entry():
    entry = {
        "use": "color",
        "name": "red",
        "weight": 2,
        "tasks": ["a"],
        "on_error": "skip",
        "retries": 3,
        "color": "red",
    }
    spec = RewardSpec.from_mapping(entry)
    assert (spec.use, spec.name, spec.weight, spec.tasks) == ("color", "red", 2.0, ("a",))
    assert (spec.on_error, spec.retries, spec.params) == ("skip", 3, {"color": "red"})
    plain = RewardSpec.from_mapping({"use": "package.module:Mine", "name": None, "tasks": None})
    assert (plain.name, plain.tasks, plain.weight, plain.on_error) == ("Mine", None, 1.0, "stop")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use": "color", "weight": "big"}, "reward 'color': weight is 'big' (a string), expected a number or"),
        ({"use": "color", "weight": True}, "reward 'color': weight is true, expected a number"),
        ({"use": "color", "weight": float("inf")}, "reward 'color': weight is inf (not finite), expected a number"),
        ({"use": "color", "on_error": "ignore"}, "reward 'color': on_error is 'ignore' (a string), expected 'stop'"),
        ({"use": "color", "retries": 11}, "reward 'color': retries is 11, expected a whole number ≥ 0 and ≤ 10"),
        ({"use": "color", "retries": 1.5}, "reward 'color': retries is 1.5 (a number), expected a whole number"),
        ({"use": "color", "tasks": "text"}, "reward 'color': tasks is 'text' (a string), expected a list of strings"),
        ({"use": "color", "tasks": []}, "tasks of reward 'color' is []"),
        ({"use": "color", "name": "a/b"}, "name is 'a/b'; letters, digits"),
        ({"ues": "color"}, "rewards[0]: the key 'use' is missing in {'ues': 'color'}"),
        ({"use": 3}, "use is 3; it names the reward"),
        (3, "3 is not a reward; a mapping with the key 'use'"),
        (
            {"use": "color", "wieght": 2},
            "unknown parameter 'wieght'; its parameters are: color, tolerance, softness. Did",
        ),
        ({"use": "color", "wieght": 2}, "Did you mean 'weight'?"),
        ({"use": "color", "colr": "red"}, "Did you mean 'color'?"),
    ],
)
def test_entries_that_are_wrong(entry, message):
    assert message in recipe_error(entry)


def test_names_must_differ_and_the_list_must_be_one():
    message = recipe_error(
        {"use": "color", "color": "red"}, "ocr", {"use": "color", "color": "blue"}, key="eval_rewards"
    )
    assert message == "eval_rewards: 2 rewards are called 'color'; give each its own 'name'."
    with pytest.raises(UserError, match="rewards is 'ocr'; a list of rewards is needed"):
        RewardSuite.from_recipe("ocr")


# A reward's own parameters


def typed(
    a: int,
    b: float = 0.0,
    c: bool = False,
    d: str | None = None,
    e: list[int] | None = None,
    f: Literal["x", "y"] = "x",
    g: Path = Path(),
    h: dict | None = None,
    i: tuple[float, ...] = (),
    j: Any = None,
    k=None,
):
    return locals()


def test_parameters_arrive_as_their_annotations_say():
    given = {
        "a": 1,
        "b": 2,
        "c": True,
        "d": "t",
        "e": [1, 2],
        "f": "y",
        "g": "p/q",
        "h": {"n": 1},
        "i": [1, 2],
        "k": {},
    }
    bound = bind_parameters(typed, given)
    assert bound == {**given, "g": Path("p/q"), "i": (1.0, 2.0)}
    assert type(bound["b"]) is float
    assert bind_parameters(typed, {"a": 1, "d": None}) == {"a": 1, "d": None}


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("a", 1.0, "a whole number"),
        ("a", True, "a whole number"),
        ("a", None, "a whole number"),
        ("b", "big", "a number"),
        ("b", "1e-4", "a number"),
        ("b", False, "a number"),
        ("c", 1, "true or false"),
        ("d", 3, "a string or null"),
        ("e", 3, "a list of whole numbers or null"),
        ("f", "z", "'x' or 'y'"),
        ("g", 1, "a string"),
        ("h", [1], "a mapping or null"),
    ],
)
def test_a_parameter_of_another_type_is_refused(name, value, needed):
    with pytest.raises(UserError, match=f"^{name} is .*, expected {needed}"):
        bind_parameters(typed, {"a": 1, name: value})


def test_a_part_of_another_type_is_refused():
    with pytest.raises(UserError, match=r"^e.1 is 'x' .*, expected a whole number"):
        bind_parameters(typed, {"a": 1, "e": [1, "x"]})


def test_a_required_parameter_is_missed():
    with pytest.raises(UserError, match="parameter 'a' is missing"):
        bind_parameters(typed, {})


def test_a_class_may_not_take_the_keys_of_every_reward():
    class Weighted(Reward):
        def __init__(self, weight: float = 1.0):
            pass

        def score(self, batch):
            return [0.0] * len(batch)

    with pytest.raises(UserError, match="'weight' is a key of every reward; rename it"):
        RewardSuite([RewardSpec(Weighted)])


def test_a_reward_that_refuses_its_parameters_is_named():
    class Choosy(Reward):
        def __init__(self, size: int = 1):
            assert size > 0, "size must be above 0"

        def score(self, batch):
            return [0.0] * len(batch)

    with pytest.raises(
        UserError, match=r"reward 'Choosy' cannot be built from .*-1.*AssertionError: size must be above"
    ):
        RewardSuite([RewardSpec(Choosy, params={"size": -1})])


def test_functions_have_parameters_too():
    def near(prompts, images, text, limit: float = 1.0):
        return [limit] * len(prompts)

    [reward] = RewardSuite([RewardSpec(near, params={"limit": 2})]).rewards
    assert reward.name == "near"
    with pytest.raises(UserError, match=r"unknown parameter 'limt'; its parameters are: limit. Did you mean 'limit'"):
        RewardSuite([RewardSpec(near, params={"limt": 2})])
    with pytest.raises(UserError, match=r"limit is 'x' .*, expected a number"):
        RewardSuite([RewardSpec(near, params={"limit": "x"})])
    with pytest.raises(
        UserError, match=r"the function takes \(batch\); a reward function takes its columns by keyword"
    ):
        RewardSuite([RewardSpec(lambda batch: [], name="f")])


def test_a_reward_with_a_model_says_how_it_is_built():
    class Unbuilt(ModelReward):
        def score(self, batch):
            return [0.0] * len(batch)

    with pytest.raises(TypeError, match="abstract method"):
        Unbuilt(1, None, "float32")
