"""The JSON Schema of recipes: current, named by every recipe, with the types and ranges that recipes are read with."""

import json

import pytest

from docs import config_page
from uniar.reading.yaml_files import read_yaml

RECIPES = sorted(config_page.SCHEMA.parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads(config_page.SCHEMA.read_text(encoding="utf-8"))


def test_the_file_is_current():
    assert config_page.SCHEMA.read_text(encoding="utf-8") == config_page.render_schema(), "python -m docs.config_page"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_a_recipe_names_the_schema_which_has_its_keys(file, schema):
    assert file.read_text().startswith(f"# yaml-language-server: $schema={config_page.SCHEMA.name}\n")

    def check(value, known):
        if isinstance(value, dict) and known.get("additionalProperties") is False:
            for key, item in value.items():
                check(item, known["properties"][key])

    check(read_yaml(file, "recipe")[0], schema)


def test_types_ranges_and_choices(schema):
    top = schema["properties"]
    assert not schema["additionalProperties"]
    assert top["seed"]["minimum"] == 0
    assert top["model"]["type"] == ["object", "null"]
    assert top["model"]["properties"]["dtype"]["enum"] == ["float32", "bfloat16"]
    assert top["max_runtime"]["type"] == ["number", "null"]
    assert top["max_runtime"]["exclusiveMinimum"] == 0
    assert {"type": "string"} in top["algorithm"]["properties"]["loss"]["anyOf"]  # a plug-in
    assert top["trainer"]["properties"]["max_steps"]["type"] == "integer"
    assert "num_generations" not in top["trainer"]["properties"]  # set elsewhere
    bare, entry = top["rewards"]["items"]["anyOf"]
    assert (bare["type"], entry["additionalProperties"]) == ("string", True)
