"""The text that a judge is asked, with a sample's own values in the places of their names."""

import re

from rewards.contract.base import RewardBatch
from uniar.errors import UserError, did_you_mean

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")


def filled_in(template: str, sample: RewardBatch) -> str | None:
    """The template with the first sample's values; None where that has no such task or metadata."""
    values = {"prompt": sample.prompts[0], "task": sample.tasks[0], "text": next(reversed(sample.texts[0]), None)}
    values |= {f"metadata.{key}": value for key, value in sample.metadata[0].items()}
    names = {match.group(1) for match in _PLACEHOLDER.finditer(template) if _stands_for(match.group(1))}
    if any(values.get(name) is None or values[name] != values[name] for name in names):  # a NaN says nothing either
        return None
    return _PLACEHOLDER.sub(
        lambda match: str(values[match.group(1)]) if match.group(1) in names else match[0], template
    )


def _stands_for(name: str) -> bool:
    return name in ("prompt", "task", "text") or name.startswith("metadata.")


def checked_template(template: str) -> str:
    """Raises UserError for a template that is empty or has a misspelt placeholder."""
    for match in _PLACEHOLDER.finditer(template):
        name = match.group(1)
        if not _stands_for(name) and (hint := did_you_mean(name, ["prompt", "task", "text", "metadata"])):
            raise UserError(f"prompt has {{{name}}}, which stands for nothing.{hint}")
    if not template.strip():
        raise UserError("prompt is empty; it says what the judge is asked.")
    return template
