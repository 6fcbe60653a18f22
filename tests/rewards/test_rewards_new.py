"""`uniar-rl rewards new`: what it writes works as it is."""

import runpy

import pytest

from rl.cli import main


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["rewards", "new", "my_reward"]) == 0
    return capsys.readouterr().out


def test_the_file_passes_the_contracts_checks_and_its_own_tests(written, tmp_path, capsys):
    assert main(["rewards", "check", "my_reward.py"]) == 0
    said = capsys.readouterr().out
    assert "my_reward.py:MyReward" in said
    assert "wrong" not in said
    assert "note" not in said
    tests = runpy.run_path(str(tmp_path / "test_my_reward.py"))
    found = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(found) == 2
    for test in found:
        test()


def test_its_lines_are_those_of_a_recipe(written):
    from rewards import RewardSuite
    from uniar.reading.yaml_files import parse_yaml

    lines = written.partition("rewards:\n")[2]
    entries, _ = parse_yaml(f"rewards:\n{lines}", "printed")
    assert RewardSuite.from_recipe(entries["rewards"]).names == ("MyReward",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-reward", "cannot be a module's name"),
        ("class", "cannot be a module's name"),
        ("../up", "cannot be a module's name"),
        ("rewards", "would take the place of uniar-rl's own package 'rewards'"),
        ("my_reward", "my_reward.py is there already"),
    ],
)
def test_names_that_will_not_do(written, tmp_path, capsys, name, said):
    before = sorted(tmp_path.rglob("*.py"))
    assert main(["rewards", "new", name]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*.py")) == before
