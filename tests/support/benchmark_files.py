"""Prompt files of the benchmarks, written here: in the form each is published in, and as UniAR's evaluation has it."""

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

GENEVAL = [
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 2}],
        "exclude": [{"class": "cup", "count": 3}],
        "prompt": "a photo of two cups",
    },
    {"tag": "counting", "include": [{"class": "cat", "count": 3}], "prompt": "a photo of three cats"},
]
GENEVAL2 = [
    {
        "prompt": "two wooden chairs left of a cat",
        "atom_count": 5,
        "vqa_list": [["How many chairs are in the image?", "two"], ["Are the chairs wooden?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {
        "prompt": "a cat",
        "atom_count": 3,
        "vqa_list": [["Are there any cats in the image?", "Yes"]],
        "skills": ["object"],
    },
]
ONEIG = [
    {
        "category": "Text_Rendering",
        "id": f"{number:03d}",
        "prompt_en": f'A shop sign that says "{text}"',
        "type": "NP",
        "prompt_length": "short",
        "class": "sign",
    }
    for number, text in enumerate(("OPEN", "BREAD DAILY"))
]
LONGTEXT = [
    {
        "category": "sign",
        "length": "short",
        "prompt": 'A board reads "NO ENTRY" above "STAFF"',
        "text": ["NO ENTRY", "STAFF"],
        "text_length": 3,
        "prompt_id": 4,
    },
    {
        "category": "label",
        "length": "long",
        "prompt": 'A jar labelled "HONEY"',
        "text": ["HONEY"],
        "text_length": 1,
        "prompt_id": 9,
    },
]
EDITS = {
    "17": {"id": "animal/a.png", "prompt": "make the cat blue", "edit_type": "adjust"},
    "5": {"id": "b.png", "prompt": "remove the tree", "edit_type": "remove"},
}
DPG = {"stock_3": "A red bus beside a tall, narrow house.", "0": "Three green apples in a glass bowl."}
SMALL = [
    "--height",
    "64",
    "--width",
    "64",
    "--upsampling-ratio",
    "1",
    "--steps",
    "1",
    "--decoder-guidance",
    "1",
    "--images-per-prompt",
    "2",
]
"""options of a drawing that takes no time; the last two are how many images"""
TEXT = {"geneval": GENEVAL, "geneval2": GENEVAL2, "oneig": ONEIG, "longtext": LONGTEXT}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def published(name: str, folder: Path) -> Path:
    """The benchmark's own file."""
    folder.mkdir(exist_ok=True, parents=True)
    if name == "imgedit":
        for edit in EDITS.values():
            picture = folder / edit["id"]
            picture.parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), "red").save(picture)
        (folder / "basic_edit.json").write_text(json.dumps(EDITS))
        return folder / "basic_edit.json"
    if name == "oneig":
        others = [{**ONEIG[0], "category": "Portrait", "prompt_en": "a face"}]
        with (folder / "OneIG-Bench.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(ONEIG[0]))
            table.writeheader()
            table.writerows(others + ONEIG)
        return folder / "OneIG-Bench.csv"
    if name == "dpg":
        prompts = folder / "prompts"
        prompts.mkdir(exist_ok=True)
        for identity, prompt in DPG.items():
            (prompts / f"{identity}.txt").write_text(prompt)
        return prompts
    return write_lines(folder / f"{name}.jsonl", TEXT[name])


def of_uniar(name: str, folder: Path) -> Path:
    """UniAR's file, beside the published one."""
    if name == "imgedit":
        metas = [
            {
                "number": number,
                "instruction": edit["prompt"],
                "input_image": edit["id"],
                "metadata": {**edit, "original_id": key},
            }
            for number, (key, edit) in enumerate(EDITS.items())
        ]
        lines = [{"idx": n, "prompt": meta["instruction"], "meta": meta} for n, meta in enumerate(metas)]
    else:
        lines = [
            {"idx": n, "prompt": line.get("prompt", line.get("prompt_en")), "meta": line}
            for n, line in enumerate(TEXT[name])
        ]
    return write_lines(folder / f"{name}_uniar.jsonl", lines)
