"""What a run was trained and evaluated on, kept beside its metrics and compared when it is resumed.

A file of prompts that was replaced would go unnoticed otherwise: the run would go on with other prompts at the same
places, and its evaluations would be compared as if they were of the same samples.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.config.evaluation_sets import sets_of
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.data.questions import QuestionRecord
from rl.policy.samples import DrawSettings
from uniar.errors import UserError
from uniar.reading.files import read_json
from uniar.reading.plugins import MOVED

HELD_OUT = {"total": "evaluate.prompts", "understanding": "understanding.questions"}
"""What the parts of an evaluation's file were measured on."""
_LATER = ("size",)
"""Fields that records have not always had: only one that is set counts, so that a run of an earlier version goes on."""


def data_state(
    recipe: Recipe,
    records: Sequence[PromptRecord],
    held_out: Sequence[PromptRecord],
    questions: Sequence[QuestionRecord],
    kl_questions: Sequence[QuestionRecord],
) -> dict[str, dict[str, Any]]:
    """The key of a recipe that names them → what the recipe says of them, how many they are, and their SHA-256; of
    held-out prompts also that of how they are drawn and scored."""
    data, asked, seed = recipe.data, recipe.understanding, recipe.data_seed
    sets = [f"{name}: {one.evaluate.prompts}, {one.evaluate.limit}" for name, one in sets_of(recipe).items() if name]
    named = {
        "data.prompts": (records, [data.prompts, data.image_root, seed, *(data.tags or [])]),
        "evaluate.prompts": (held_out, [recipe.evaluate.prompts, data.image_root, seed, recipe.evaluate.limit, *sets]),
        "understanding.questions": (questions, [asked.questions, asked.image_root, asked.limit]),
        "understanding.kl_questions": (kl_questions, [asked.kl_questions, asked.image_root]),
    }
    state = {
        key: {"from": [None if value is None else str(value) for value in said], **told_by(found)}
        for key, (found, said) in named.items()
    }
    how = {str(name): _evaluated_how(one) for name, one in sets_of(recipe).items()}
    measured = json.dumps(how, sort_keys=True, default=str)
    for former, name in MOVED.items():  # a reward that has another name measures as before
        measured = measured.replace(json.dumps(name), json.dumps(former))
    state["evaluate.prompts"]["measured"] = hashlib.sha256(measured.encode()).hexdigest()
    return state


def _evaluated_how(recipe: Recipe) -> list[Any]:
    drawn = DrawSettings.for_evaluation(recipe).of_images()
    return [recipe.eval_rewards or recipe.rewards, drawn, recipe.evaluate.samples_per_prompt]


def measured_on(state: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What tells the parts of evaluations apart that cannot be compared: other samples or questions, other rewards."""
    return {part: state[key]["sha256"] + state[key].get("measured", "") for part, key in HELD_OUT.items()}


def check_unchanged(before: Path, now: dict[str, dict[str, Any]]) -> None:
    """Compares with what a checkpoint holds (`before`, its data.json; one of an older version has none).

    Raises UserError where the recipe names the same data as then, and they are others. Where it names others, that is
    meant, and said on the console.
    """
    if not before.is_file():
        return
    then = read_json(before, "record of a run's data")
    for key, found in now.items():
        kept = then.get(key) if isinstance(then, dict) else None
        if not isinstance(kept, dict) or kept.get("sha256") == found["sha256"]:
            continue
        changed = f"{kept.get('records')} records then, {found['records']} now"
        if kept.get("from") == found["from"]:
            raise UserError(
                f"{key}: {found['from'][0]} is not what the run was begun with ({changed}, or others); put the former "
                "content back, or to go on with the new one on purpose, give it another name and set the key to that."
            )
        print(f"{key}: other data than before the run was resumed ({changed}).", flush=True)


def told_by(records: Sequence[PromptRecord | QuestionRecord]) -> dict[str, Any]:
    """Number and hash of records in their order; pictures count with their name and size."""
    digest = hashlib.sha256()
    for record in records:
        fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.compare}
        fields = {name: value for name, value in fields.items() if name not in _LATER or value is not None}
        fields["image"] = _picture(record.image)
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode() + b"\n")
    return {"records": len(records), "sha256": digest.hexdigest()}


def _picture(image: Any) -> list[Any] | str | None:
    if isinstance(image, str | Path) and os.path.isfile(image):
        return [os.path.basename(image), os.path.getsize(image)]
    return None if image is None else str(image)
