"""`uniar-rl rewards list | describe | score | check`, as they are typed."""

import inspect
import json
import socket

import pytest
from huggingface_hub import constants
from PIL import Image

from rewards import Reward, register_reward, registry
from rewards.commands.description import parameters_of, split_doc
from rewards.registry import resolve, reward_names
from rl.cli import main

PLUGIN = '''
"""Rewards of a user."""

from rewards import Reward


class Darkness(Reward):
    """How dark a picture is.

    Args:
        scale: what black counts. It may be
            any number.
        kind, floor: both have the same help.
    """

    usual_range = (0.0, 1.0)

    def __init__(self, scale: float = 1.0, kind: str | None = None, floor: float = 0.0):
        self.scale = scale

    async def score(self, batch):
        scores = []
        for image, metadata, task in zip(batch.images, batch.metadata, batch.tasks, strict=True):
            if metadata.get("broken"):
                raise ValueError("it is broken")
            dark = self.scale * (1 - image.convert("L").getpixel((0, 0)) / 255)
            scores.append(None if metadata.get("skip") else {"score": dark, "why": f"{task}: {metadata.get('text')}"})
        return scores


def length(prompts, images, factor: int = 1, **columns):
    """Letters of the prompt."""
    return [factor * len(prompt) for prompt in prompts]
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to type commands in: a plug-in, and pictures that are black, grey and white."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "drawn").mkdir()
    for name, grey in (("b.png", 255), ("a.jpg", 0), ("c.webp", 51)):
        Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / "drawn" / name, lossless=True)
    return tmp_path


@pytest.fixture
def typed(capsys):
    """Runs `uniar-rl rewards …` and returns its exit status and what it wrote."""

    def run(*words):
        capsys.readouterr()
        status = main(["rewards", *words])
        written = capsys.readouterr()
        return status, written.err if status else written.out

    return run


def refused(typed, *words):
    """The one sentence with which a command refuses."""
    status, said = typed(*words)
    assert status == 2
    assert said.startswith("uniar-rl rewards: ")
    return said.strip().splitlines()[-1]


# list and describe ---------------------------------------------------------------------------------------------------


def test_list_has_every_reward_with_what_it_needs(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--THUDM--ImageReward" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    (cached / "ImageReward.pt").touch()
    monkeypatch.setattr("rewards.needs._is_installed", lambda package: package != "rapidocr")
    status, said = typed("list")
    assert status == 0
    entries = {}
    for line in said.splitlines():
        if not line.startswith(" "):
            name, summary = line.split(maxsplit=1)
            entries[name] = [summary]
        else:
            entries[name].append(line.strip())
    assert list(entries) == reward_names()
    needs = {name: " ".join(lines[1:]) for name, lines in entries.items()}
    assert all(len(lines[0]) > 20 for lines in entries.values())
    assert needs["color"] == "needs nothing else"
    assert needs["ocr"] == "needs rapidfuzz (there), rapidocr (not installed)"
    assert needs["vlm_judge"] == "needs httpx2 (there), url (a parameter)"
    assert "THUDM/ImageReward (weights, there)" in needs["image_reward"]
    assert "google-bert/bert-base-uncased (weights, not downloaded yet)" in needs["image_reward"]
    assert "timm/vit_large_patch14_clip_224.openai (weights, not downloaded yet)" in needs["clip_score"]
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", reward_names())
def test_describe_explains_every_parameter(name, typed):
    status, said = typed("describe", name)
    assert status == 0
    for parameter, _ in parameters_of(resolve(name)):
        assert f"\n  {parameter.name}: " in said
    helps = split_doc(inspect.getdoc(resolve(name)))[1]
    assert list(helps) == list(inspect.signature(resolve(name)).parameters)
    assert all(len(text) > 5 for text in helps.values())


def test_describe_says_types_defaults_and_help(typed, here):
    status, said = typed("describe", "vlm_judge")
    assert status == 0
    assert "  url: str | Sequence[str], required\n      the API's base, such as" in said
    assert "  parser: 'text' | 'json' = 'text'\n" in said
    assert "  preset: 'unified_reward' | None = None\n" in said
    status, said = typed("describe", "mine.py:Darkness")
    assert said == (
        "mine.py:Darkness: How dark a picture is.\n\nparameters:\n"
        "  scale: float = 1.0\n      what black counts. It may be any number.\n"
        "  kind: str | None = None\n      both have the same help.\n"
        "  floor: float = 0.0\n      both have the same help.\n\n"
        "usual range: 0 to 1\n\nneeds nothing else\n"
    )
    _, said = typed("describe", "mine.py:length")
    assert "parameters:\n  factor: int = 1\n" in said
    assert "prompts" not in said


def test_describe_sees_what_parameters_name(typed, here):
    (here / "my.pt").touch()
    _, said = typed("describe", "clip_score", f"weights={here}/my.pt", "model=ViT-B-32")
    assert f"{here}/my.pt (there)" in said
    _, said = typed("describe", "clip_score", f"weights={here}/other.pt")
    assert f"{here}/other.pt (no such file)" in said
    _, said = typed("describe", "self_vqa", "judge=owner/name")
    assert said.endswith("needs owner/name (weights, not downloaded yet)\n")


def test_a_name_that_there_is_not_is_refused_with_the_nearest(typed, here):
    assert "Did you mean 'clip_score'?" in refused(typed, "describe", "clipscore")
    assert "has no 'Darknes'. Did you mean 'Darkness'?" in refused(typed, "describe", "mine.py:Darknes")
    assert "does not say which reward of the file" in refused(typed, "score", "mine.py", "--image", "drawn")


# score ---------------------------------------------------------------------------------------------------------------


def test_a_picture_is_scored_as_in_a_recipe(typed, here):
    status, said = typed("score", "color", "color=black", "tolerance=0.25", "--image", "drawn/c.webp")
    assert status == 0
    assert said == "       color  picture\n           1  drawn/c.webp\n"
    _, said = typed("score", "mine.py:length", "factor=2", "--image", "drawn/a.jpg", "--prompt", "four")
    assert said.splitlines()[1].split() == ["8", "drawn/a.jpg"]


def test_a_folder_in_the_order_of_its_names_and_the_mean(typed, here):
    status, said = typed("score", "mine.py:Darkness", "scale=10", "--image", "drawn", "--batch-size", "2")
    assert status == 0
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["Darkness", "picture"],
        ["10", "drawn/a.jpg"],
        ["0", "drawn/b.png"],
        ["8", "drawn/c.webp"],
        ["6", "mean"],
    ]


def test_lines_of_a_file_bring_their_own_and_go_to_one(typed, here):
    lines = [
        {"image": "drawn/a.jpg", "prompt": "night", "task": "dark", "text": "OPEN"},
        {"image": "drawn/b.png", "metadata": {"skip": True, "text": "no"}},
        {"image": "drawn/c.webp", "prompt": None},
    ]
    (here / "set.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    words = ["--image", "set.jsonl", "--prompt", "day", "--metadata", '{"text": "SHUT"}', "--task", "t"]
    status, said = typed("score", "mine.py:Darkness", *words, "--output", "out.jsonl")
    assert status == 0
    assert said.splitlines()[1:] == [
        "           1  drawn/a.jpg  dark: OPEN",
        "           -  drawn/b.png",
        "         0.8  drawn/c.webp  t: SHUT",
        "         0.9  mean of 2 scores",
    ]
    assert [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()] == [
        {"image": "drawn/a.jpg", "prompt": "night", "Darkness": 1.0, "details": {"why": "dark: OPEN"}},
        {"image": "drawn/b.png", "prompt": "day", "Darkness": None},
        {"image": "drawn/c.webp", "prompt": "day", "Darkness": 0.8, "details": {"why": "t: SHUT"}},
    ]


def test_a_picture_that_the_reward_fails_on_is_named_and_the_others_are_scored(typed, here, capsys):
    (here / "set.jsonl").write_text('{"image": "drawn/a.jpg"}\n{"image": "drawn/b.png", "broken": true}\n')
    assert main(["rewards", "score", "mine.py:Darkness", "--image", "set.jsonl", "--output", "out.jsonl"]) == 2
    said, error = capsys.readouterr()
    assert said.splitlines()[1].split()[:2] == ["1", "drawn/a.jpg"]
    assert said.splitlines()[2].split()[:2] == ["failed", "drawn/b.png:"]
    assert "ValueError: it is broken (mine.py, line " in said
    assert "Darkness failed on 1 of 2 pictures" in error
    record = json.loads((here / "out.jsonl").read_text().splitlines()[1])
    assert record["Darkness"] is None
    assert "it is broken" in record["failed"]


SCORE_FAULTS = {
    "no picture": (["--image", "none.png"], "the picture 'none.png' does not exist"),
    "no picture in the folder": (["--image", "empty"], "the folder 'empty' has no picture (.png, .jpg"),
    "no image": (["--image", "mine.py"], "the picture 'mine.py' cannot be read"),
    "no file": (["--image", "none.jsonl"], "the file 'none.jsonl' does not exist"),
    "bad line": (["--image", "bad.jsonl"], "bad.jsonl, line 2: not valid JSON"),
    "line without image": (["--image", "odd.jsonl"], "odd.jsonl, line 1: an object with the field 'image'"),
    "odd prompt": (["--image", "prompt.jsonl"], "prompt.jsonl, line 1: 'prompt' is 3, a text is needed"),
    "metadata": (["--image", "drawn", "--metadata", "{"], "--metadata is not valid JSON"),
    "metadata list": (["--image", "drawn", "--metadata", "[1]"], "a JSON object is needed"),
    "batch": (["--image", "drawn", "--batch-size", "0"], "--batch-size is 0; at least 1"),
    "output": (["--image", "drawn", "--output", "no/such.jsonl"], "'no/such.jsonl' cannot be written"),
    "parameter": (["scale", "--image", "drawn"], "'scale' is no parameter; key=value is needed"),
    "twice": (["scale=1", "scale=2", "--image", "drawn"], "the parameter 'scale' is given twice"),
    "unknown": (["scael=1", "--image", "drawn"], "Did you mean 'scale'?"),
    "type": (["scale=big", "--image", "drawn"], "scale is 'big', a number is needed"),
    "yaml": (["scale=[", "--image", "drawn"], "'scale=[' is not valid YAML"),
}


@pytest.mark.parametrize("case", SCORE_FAULTS)
def test_what_cannot_be_scored_is_said_in_a_sentence(case, typed, here):
    (here / "empty").mkdir()
    (here / "bad.jsonl").write_text('{"image": "drawn/a.jpg"}\n{"image"\n')
    (here / "odd.jsonl").write_text('["drawn/a.jpg"]\n')
    (here / "prompt.jsonl").write_text('{"image": "drawn/a.jpg", "prompt": 3}\n')
    words, message = SCORE_FAULTS[case]
    assert message in refused(typed, "score", "mine.py:Darkness", *words)


# check ---------------------------------------------------------------------------------------------------------------


def test_a_sound_plug_in_passes_every_check(typed, here):
    status, said = typed("check", "mine.py:Darkness", "scale=2")
    assert status == 0
    assert "wrong" not in said
    assert {line.split()[0] for line in said.splitlines()[1:]} == {"ok"}
    status, said = typed("check", "mine.py")
    assert status == 0
    assert [line for line in said.splitlines() if not line.startswith(" ")] == ["mine.py:Darkness:", "mine.py:length:"]


BROKEN = {
    # A function's body → the check that finds it, and what is said.
    "too few": ("return [1.0]", "it scores a batch", "returned 1 score for 4 samples"),
    "text": ("return ['good'] * len(images)", "it scores a batch", "returned 'good' (str), a number or None"),
    "bool": ("return [True] * len(images)", "it scores a batch", "returned True (bool)"),
    "infinite": ("return [float('inf')] * len(images)", "it scores a batch", "a finite number or None"),
    "none": ("pass", "it scores a batch", "returned None (NoneType), a list with one score a sample"),
    "no score": ("return [{'why': 'x'}] * len(images)", "it scores a batch", "without the key 'score'"),
    "raises": ("return [m['text'] for m in metadata]", "it scores a batch", "KeyError: 'text' (bad.py, line 3)"),
    "paints": (
        "[i.putpixel((0, 0), (0, 0, 0)) for i in images]; return [i.size[1] for i in images]",
        "it leaves the samples as they are",
        "score changed the images it was given",
    ),
    "notes": (
        "[m.update(seen=1) for m in metadata]; return [i.size[1] for i in images]",
        "it leaves the samples as they are",
        "score changed the metadata it was given",
    ),
    "random": (
        "import random; return [random.random() * 100 for _ in images]",
        "the same samples have the same scores",
        "a second time",
    ),
    "sorted": (
        "return sorted(i.size[1] for i in images)",
        "scores are in the order of the samples",
        "48, 64, 80, 96 in reverse",
    ),
    "compares": (
        "return [i.size[1] - sum(j.size[1] for j in images) / len(images) for i in images]",
        "a sample scores the same alone",
        "by itself (a reward that compares samples says pointwise = False)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plug_in_is_told_what_is_wrong(case, here, capsys):
    body, check, message = BROKEN[case]
    (here / "bad.py").write_text(f'def bad(prompts, images, metadata):\n    """Bad."""\n    {body}\n')
    assert main(["rewards", "check", "bad.py"]) == 2
    said, error = capsys.readouterr()
    [line] = [line for line in said.splitlines() if line.startswith("  wrong")]
    assert line.startswith(f"  wrong  {check}: ")
    assert message in line
    assert error.strip() == "uniar-rl rewards: bad.py: 1 check failed."


CLASSES = {
    "init": ("def __init__(self, size: int):\n        pass", "wrong  it can be built: ", "'size' is missing"),
    "load": ("def load(self):\n        raise OSError('no disk')", "wrong  it loads", "OSError: no disk"),
    "once": (
        "def load(self):\n        assert not hasattr(self, 'w')\n        self.w = 1",
        "wrong  it loads, twice",
        "AssertionError",
    ),
    "early to": ("def to(self, device):\n        self.w.to(device)", "wrong  it loads", "has no attribute 'w'"),
    "untyped": ("def __init__(self, size=3):\n        pass", "note   its parameters have types", "size without a type"),
    "no help": (
        "def __init__(self, size: int = 3):\n        pass",
        "note   its parameters are explained",
        "does not mention size",
    ),
    "taken": (
        "def __init__(self, weight: float = 1):\n        pass",
        "wrong  it can be built",
        "a key of every reward",
    ),
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_rest_of_a_class_is_checked_too(case, here, capsys):
    body, start, message = CLASSES[case]
    (here / "bad.py").write_text(
        f'from rewards import Reward\n\n\nclass Bad(Reward):\n    """Bad."""\n\n    {body}\n\n'
        "    def score(self, batch):\n        return [image.size[1] for image in batch.images]\n"
    )
    assert main(["rewards", "check", "bad.py"]) == (2 if start.startswith("wrong") else 0)
    [line] = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(start)]
    assert message in line


def test_samples_of_ones_own(typed, here):
    (here / "picky.py").write_text(
        'def picky(images, word):\n    """By a word of the metadata."""\n'
        "    return [None if w is None else len(w) + i.getpixel((0, 0))[0] for i, w in zip(images, word)]\n"
    )
    status, said = typed("check", "picky.py")
    assert status == 0
    assert "note   it applies: it applies to none of these samples; give it some of its own by --samples" in said
    _, said = typed("check", "picky.py", "--metadata", '{"word": "abc"}')
    assert "note" not in said
    lines = ['{"image": "drawn/a.jpg", "word": "x"}', '{"image": "drawn/c.webp", "word": "y"}']
    (here / "set.jsonl").write_text("\n".join(lines))
    _, said = typed("check", "picky.py", "--samples", "set.jsonl")
    assert "it scores a batch: 1, 52, " in said
    (here / "one.jsonl").write_text(lines[0])
    assert "--samples has 1 pictures; 2 to 16 are needed" in refused(
        typed, "check", "picky.py", "--samples", "one.jsonl"
    )
    words = ["--samples", "set.jsonl", "--metadata", "{}"]
    assert "--metadata is for made-up samples" in refused(typed, "check", "picky.py", *words)


def test_files_without_a_reward_are_refused(typed, here):
    (here / "none.py").write_text("import math\n\n\ndef helper(x):\n    return x\n")
    (here / "syntax.py").write_text("def f(:\n")
    assert "plug-in none.py has no reward" in refused(typed, "check", "none.py")
    assert "plug-in syntax.py does not import: SyntaxError" in refused(typed, "check", "syntax.py")
    assert "plug-in gone.py does not exist" in refused(typed, "check", "gone.py")


@pytest.mark.parametrize("name", ["compressibility", "color", "sharpness", "diversity"])
def test_the_analytic_rewards_pass_their_own_checks(name, typed):
    status, said = typed("check", name)
    assert status == 0, said
    assert "  ok     it can be built\n" in said


# serve ---------------------------------------------------------------------------------------------------------------


SERVE_FAULTS = {
    "no file": (["none.yaml"], "the file 'none.yaml' does not exist"),
    "open without token": (["r.yaml", "--host", "0.0.0.0"], "needs a token: set UNIAR_REWARDS_TOKEN or give"),
    "no token in its file": (["r.yaml", "--token-file", "empty"], "--token-file 'empty' is empty"),
    "no token file": (["r.yaml", "--token-file", "none"], "--token-file 'none' cannot be read"),
    "short token": (["r.yaml", "--token-file", "short"], "the token has 3 characters; at least 16"),
    "port": (["r.yaml", "--port", "70000"], "--port is 70000"),
    "taken": (["r.yaml", "--port", "TAKEN"], "cannot listen on 127.0.0.1 port"),
    "body": (["r.yaml", "--max-body-mb", "0"], "--max-body-mb is 0"),
    "samples": (["r.yaml", "--max-samples", "0"], "--max-samples is 0"),
    "weights": (["w.yaml", "--port", "0"], "reward 'clip_score': weight file /no/such.pt does not exist"),
}


@pytest.mark.parametrize("case", SERVE_FAULTS)
def test_what_cannot_be_served_is_said_in_a_sentence(case, typed, here, monkeypatch):
    monkeypatch.delenv("UNIAR_REWARDS_TOKEN", raising=False)
    (here / "r.yaml").write_text("rewards: [compressibility]\n")
    (here / "w.yaml").write_text("rewards: [{use: clip_score, weights: /no/such.pt}]\n")
    (here / "empty").write_text("\n")
    (here / "short").write_text("abc\n")
    words, message = SERVE_FAULTS[case]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [str(taken.getsockname()[1]) if word == "TAKEN" else word for word in words]
        assert message in refused(typed, "serve", *words)


def test_a_reward_typed_into_a_session_is_listed(monkeypatch, capsys):
    """It has no source file, so what it imports is not known."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    namespace = {"__name__": "gone", "Reward": Reward}
    exec("class Typed(Reward):\n    def score(self, batch):\n        return [0.0] * len(batch)\n", namespace)
    register_reward("typed")(namespace["Typed"])
    assert main(["rewards", "list"]) == 0
    assert "typed" in capsys.readouterr().out
