"""Names that are no recipe lead to one."""

import pytest

from rl.config.recipe import load_recipe
from uniar.errors import UserError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstart", "The recipe 'quickstart' does not exist. Did you mean 'quickstart.yaml'?"),
        ("uniar_sft.yaml", "The recipe 'uniar_sft.yaml' does not exist. Did you mean 'uniar_sft_"),
        ("runs/one", "'runs/one' is a folder; name a recipe, such as runs/one/config.yaml."),
        ("runs", "'runs' is a folder; name a recipe, a YAML file."),
        ("nothing_like_it.yaml", "The recipe 'nothing_like_it.yaml' does not exist."),
    ],
)
def test_what_is_no_recipe_leads_to_one(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.yaml").touch()
    with pytest.raises(UserError) as error:
        load_recipe(name)
    assert str(error.value).startswith(words)
