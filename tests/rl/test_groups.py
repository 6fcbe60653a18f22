"""Rewards that compare the samples of a prompt see all of them, on any number of processes."""

import json

import pytest
from support.training_runs import launch, logged, run, small_recipe

from rl.data.prompts import PromptRecord
from rl.policy.samples import Sample
from rl.scoring.groups import groups_of

# The share of a sample in the red of its group, and the group's size; each call is written down.
SHARE = """\
import json, os
from pathlib import Path
from PIL import ImageStat

def share(prompts, images, bits, **_):
    reds = [ImageStat.Stat(image).mean[0] + 1 for image in images]
    with Path(__file__).with_name(f"seen-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps([sorted(set(prompts)), len(prompts), len(bits)]) + "\\n")
    return [{"score": red / sum(reds), "why": f"one of {len(reds)}"} for red in reds]

share.pointwise = False
"""


def recipe_in(folder, checkpoint, group, groups):
    """Updates on `groups` groups of `group` samples."""
    folder.mkdir()
    recipe = small_recipe(checkpoint, folder)
    (folder / "share.py").write_text(SHARE)
    lines = [json.dumps({"prompt": f"a {color} square"}) for color in ("red", "blue", "green", "grey", "pink", "white")]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    recipe["rollout"]["samples_per_prompt"] = group
    recipe["rewards"] += [
        {"use": f"{folder / 'share.py'}:share", "weight": 0.5},
        {"use": "diversity", "weight": 0.1},
        {"use": "diversity", "of": "bits", "name": "bits", "weight": 0.1},
    ]
    recipe["trainer"] |= {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": group * groups}
    return recipe


def require_same(there, here, group):
    """The same scores, of calls with whole groups."""
    for key in ("reward", "reward_std", "rewards/share/mean", "rewards/share/std", "rewards/diversity/mean"):
        assert logged(there, key) == pytest.approx(logged(here, key), rel=1e-6, abs=1e-9), key
    assert logged(there, "rewards/bits/mean") == pytest.approx(logged(here, "rewards/bits/mean"), rel=1e-9)
    assert logged(there, "grad_norm") == pytest.approx(logged(here, "grad_norm"), rel=1e-3)
    assert logged(there, "rewards/share/missing") == [0, 0]
    calls = [
        [json.loads(line) for file in folder.path.parent.glob("seen-*.jsonl") for line in file.read_text().splitlines()]
        for folder in (there, here)
    ]
    assert sorted(calls[0]) == sorted(calls[1])
    assert all(len(prompts) == 1 and count == bits == group for prompts, count, bits in calls[0])
    said = [json.loads(line)["details"]["share"] for line in (there.path / "details.jsonl").read_text().splitlines()]
    assert said
    assert all(entry["why"] == f"one of {group}" for entry in said)


def test_a_group_on_two_processes_is_compared_whole(nano_checkpoint, tmp_path):
    """Three groups of four on two processes: the second one straddles them."""
    here = run(recipe_in(tmp_path / "one", nano_checkpoint, 4, 3))
    recipe = recipe_in(tmp_path / "two", nano_checkpoint, 4, 3)
    there, _ = launch(recipe, 2, trainer={"per_device_train_batch_size": 6})
    require_same(there, here, 4)


def test_processes_that_do_not_agree_who_compares_end_with_a_sentence(nano_checkpoint, tmp_path):
    """As where they have reached servers that say different things: none waits for a sample that is never sent."""
    recipe = recipe_in(tmp_path / "two", nano_checkpoint, 4, 3)
    script = tmp_path / "two" / "share.py"
    script.write_text(SHARE.replace("pointwise = False", 'pointwise = os.environ["RANK"] == "1"'))
    _, printed = launch(recipe, 2, fails=True, trainer={"per_device_train_batch_size": 6})
    names = "diversity, bits"
    assert f"compare the samples of a prompt (process 0: share, {names}; process 1: {names}); the" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "groups", "processes", "sections"),
    [
        (6, 2, 3, {}),
        (12, 1, 3, {}),
        (4, 3, 3, {}),
        (4, 3, 2, {"rollout": {"dynamic_sampling": {}}}),
        (4, 3, 3, {"decode": {"processes": 1}}),
        (12, 1, 4, {"decode": {"processes": 1}}),
    ],
)
def test_groups_on_more_processes(nano_checkpoint, tmp_path, group, groups, processes, sections):
    training = processes - sections.get("decode", {}).get("processes", 0)
    alone = {name: section for name, section in sections.items() if name != "decode"}
    here = run(recipe_in(tmp_path / "one", nano_checkpoint, group, groups), **alone)
    recipe = recipe_in(tmp_path / "more", nano_checkpoint, group, groups)
    trainer = {"per_device_train_batch_size": group * groups // training}
    there, _ = launch(recipe, processes, trainer=trainer, **sections)
    require_same(there, here, group)


def test_groups_are_told_by_their_prompts_and_numbers():
    a, b = PromptRecord("a", id="a"), PromptRecord("b", id="b")
    samples = [Sample(a, 2), Sample(a, 3), Sample(b, 0), Sample(b, 1), Sample(b, 0), Sample(b, 1)]
    assert groups_of(samples) == [[0, 1], [2, 3], [4, 5]]
    assert groups_of(samples, apart=[0, 1, 5]) == [[2, 3], [4]]
    assert groups_of([]) == []
