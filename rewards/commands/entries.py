"""A reward on the command line: `NAME key=value …`, where a recipe would have `{use: NAME, key: value}`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rewards.contract.spec import RewardSpec
from rewards.suite import RewardSuite
from uniar.errors import UserError
from uniar.reading.yaml_files import parse_yaml


def read_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Parameters from `key=value`, each value read as YAML. Raises UserError."""
    parameters = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{text!r} is not a parameter; key=value is needed.")
        if key in parameters:
            raise UserError(f"the parameter {key!r} is given twice.")
        parameters[key], _ = parse_yaml(value, text, lines=False)
    return parameters


def build_entry(arguments: argparse.Namespace) -> RewardSuite:
    """A suite of the one reward that the arguments name. Raises UserError."""
    entry = {"use": arguments.name, **read_parameters(arguments.parameters)}
    return RewardSuite([RewardSpec.from_mapping(entry)])


def read_metadata(text: str) -> dict[str, Any]:
    """The value of --metadata. Raises UserError for what is not a JSON object."""
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--metadata is not valid JSON: {error}.") from error
    if not isinstance(metadata, dict):
        raise UserError(f"--metadata is {text!r}; a JSON object is needed.")
    return metadata
