"""A recipe whose prompts are drawn, edited, answered, thought about and drawn again, in one batch and one update."""

import json
from collections import Counter
from pathlib import Path

from PIL import Image
from support.training_runs import changed, small_recipe

REWARDS = """\
import hashlib, json, os
from pathlib import Path

def seen(prompts, images, texts, **_):
    with Path(__file__).with_name(f"seen-{os.getpid()}.jsonl").open("a") as file:
        for prompt, image, said in zip(prompts, images, texts):
            drawn = None if image is None else hashlib.sha256(image.tobytes()).hexdigest()
            file.write(json.dumps([prompt, drawn, said]) + "\\n")
    return [0.0] * len(prompts)

def vowels(texts, **_):
    return [sum(letter in "aeiou" for letter in said[-1]) / (1 + len(said[-1])) if said else None for said in texts]

seen.needs_image = vowels.needs_image = False
"""


def mixed_recipe(checkpoint: Path, folder: Path, **sections: dict) -> dict:
    """Three updates of a small model on 8 prompts, 4 of them a rollout; its files are in `folder`."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    rows = [
        {"prompt": "a red square", "task": "draw"},
        {"prompt": "make it blue", "task": "draw", "image": "red.png"},
        {"prompt": "what color is this?", "task": "vqa", "image": "red.png", "answer": "red"},
        {"prompt": "is it red?", "task": "vqa", "answer": ["yes", "no"]},
        {"prompt": "a green cat", "task": "think"},
        {"prompt": "a dog", "task": "redraw"},
        {"prompt": "a hat", "task": "draw", "height": 32, "width": 64},
        {"prompt": "what is two and two?", "task": "vqa"},
    ]
    recipe = small_recipe(checkpoint, folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARDS)
    drawn = ["draw", "think", "redraw"]
    rewards = [
        {**recipe["rewards"][0], "tasks": drawn},
        {"use": f"{folder / 'mine.py'}:vowels", "tasks": ["vqa", "think"]},
        {"use": f"{folder / 'mine.py'}:seen", "weight": 0},
    ]
    recipe = changed(
        recipe,
        rollout={
            "guidance": "guided",
            "guidance_scale": 2.0,
            "max_new_tokens": 5,
            "episodes": {"vqa": "answer", "think": "think_draw", "redraw": "draw_check_redraw"},
        },
        trainer={"per_device_train_batch_size": 16, "save_steps": 1},
        records={"groups_every": None},
    )
    return changed({**recipe, "rewards": rewards}, **sections)


def seen(folder: Path) -> Counter:
    """What was drawn and written, by all processes of the runs in a folder."""
    return Counter(line for file in folder.glob("seen-*.jsonl") for line in file.read_text().splitlines())
