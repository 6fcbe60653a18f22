"""`uniar-rl rewards check`: what a plug-in keeps to, and what it is told where it does not."""

import pytest
from support.typed_rewards import refused

from rl.cli import main


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
    "none": ("pass", "it scores a batch", "returned None (NoneType), a list with one score per sample"),
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
    assert "note   it applies: the function takes the column 'word', which no prompt has; " in said
    assert "give it samples of its own by --samples or --metadata" in " ".join(said.split())
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
