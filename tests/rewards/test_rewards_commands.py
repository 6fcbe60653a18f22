"""`uniar-rl rewards list | describe | score | serve`, as they are typed."""

import inspect
import json
import socket

import pytest
from huggingface_hub import constants
from support.typed_rewards import refused

from rewards import Reward, register_reward
from rewards.commands.description import parameters_of, split_doc
from rewards.contract import registry
from rewards.contract.registry import resolve, reward_names
from rl.cli import main

# list and describe ---------------------------------------------------------------------------------------------------


def test_list_has_every_reward_with_what_it_needs(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--THUDM--ImageReward" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    (cached / "ImageReward.pt").touch()
    monkeypatch.setattr("rewards.contract.needs._is_installed", lambda package: package != "rapidocr")
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
    assert "  preset: 'unified_reward' | 'edit' | 'imgedit' | None = None\n" in said
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


def test_a_column_that_no_picture_has_is_refused(typed, here):
    (here / "trl.py").write_text("def trl(prompts, completions, **columns): return [1.0] * len(prompts)\n")
    said = refused(typed, "score", "trl.py:trl", "--image", "drawn")
    assert "reward 'trl': the function takes the column 'completions', which no prompt has; " in said
    assert said.rstrip().endswith("Did you mean 'images'?")


def test_a_picture_is_scored_as_in_a_recipe(typed, here):
    status, said = typed("score", "color", "color=black", "tolerance=0.25", "--image", "drawn/c.webp")
    assert status == 0
    assert said == "       color  picture\n           1  drawn/c.webp\n"
    _, said = typed("score", "mine.py:length", "factor=2", "--image", "drawn/a.jpg", "--prompt", "four")
    assert said.splitlines()[1].split() == ["8", "drawn/a.jpg"]
    _, several = typed(
        "score", "mine.py:length", "factor=2", "--prompt", "four", "--image", "drawn/a.jpg", "drawn/b.png"
    )
    assert [line.split() for line in several.splitlines()[1:3]] == [["8", "drawn/a.jpg"], ["8", "drawn/b.png"]]


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


def test_separators_inside_strings_end_no_line(typed, here):
    rows = [{"image": "drawn/a.jpg", "prompt": f"a{mark}b"} for mark in "\u2028\u2029\u0085\x0b"]
    (here / "s.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), encoding="utf-8"
    )
    assert typed("score", "mine.py:Darkness", "--image", "s.jsonl", "--output", "out.jsonl")[0] == 0
    written = [json.loads(line) for line in (here / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["prompt"] for line in written] == [row["prompt"] for row in rows]
    assert typed("check", "mine.py", "--samples", "s.jsonl")[0] == 0


SCORE_FAULTS = {
    "no picture": (["--image", "none.png"], "the picture 'none.png' does not exist"),
    "no picture in the folder": (["--image", "empty"], "the folder 'empty' has no picture (.png, .jpg"),
    "no image": (["--image", "mine.py"], "the picture 'mine.py' is not a whole picture"),
    "no file": (["--image", "none.jsonl"], "the file 'none.jsonl' does not exist"),
    "bad line": (["--image", "bad.jsonl"], "bad.jsonl, line 2: not valid JSON"),
    "line without image": (
        ["--image", "odd.jsonl"],
        'odd.jsonl, line 1: found ["drawn/a.jpg"] (a list), expected an object',
    ),
    "odd prompt": (["--image", "prompt.jsonl"], "prompt.jsonl, line 1: 'prompt' is 3 (a number), expected a string"),
    "metadata": (["--image", "drawn", "--metadata", "{"], "--metadata is not valid JSON"),
    "metadata list": (["--image", "drawn", "--metadata", "[1]"], "a JSON object is needed"),
    "batch": (["--image", "drawn", "--batch-size", "0"], "--batch-size is 0; at least 1"),
    "output": (["--image", "drawn", "--output", "no/such.jsonl"], "'no/such.jsonl' cannot be written"),
    "parameter": (["scale", "--image", "drawn"], "'scale' is not a parameter; key=value is needed"),
    "twice": (["scale=1", "scale=2", "--image", "drawn"], "the parameter 'scale' is given twice"),
    "unknown": (["scael=1", "--image", "drawn"], "Did you mean 'scale'?"),
    "type": (["scale=big", "--image", "drawn"], "scale is 'big' (a string), expected a number"),
    "yaml": (["scale=[", "--image", "drawn"], "scale=[: not valid YAML"),
}


@pytest.mark.parametrize("case", SCORE_FAULTS)
def test_what_cannot_be_scored_is_said_in_a_sentence(case, typed, here):
    (here / "empty").mkdir()
    (here / "bad.jsonl").write_text('{"image": "drawn/a.jpg"}\n{"image"\n')
    (here / "odd.jsonl").write_text('["drawn/a.jpg"]\n')
    (here / "prompt.jsonl").write_text('{"image": "drawn/a.jpg", "prompt": 3}\n')
    words, message = SCORE_FAULTS[case]
    assert message in refused(typed, "score", "mine.py:Darkness", *words)


# serve ---------------------------------------------------------------------------------------------------------------


SERVE_FAULTS = {
    "no file": (["none.yaml"], "The file 'none.yaml' does not exist"),
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
