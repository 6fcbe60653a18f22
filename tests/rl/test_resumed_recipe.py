"""A recipe that is changed when a run is resumed: what counts from then on, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe

from rl.checkpoint.folders import seal
from rl.checkpoint.resume import apply_settings, settings_of_groups
from rl.checkpoint.resumed_recipe import check_resumed
from rl.config.recipe import recipe_from_mapping
from rl.config.sections import Recipe
from rl.run.claim import _start_of, check_claim
from rl.run.folder import RunFolder
from uniar.errors import UserError
from uniar.reading.yaml_files import dump_yaml


@pytest.fixture(scope="module")
def begun(nano_checkpoint, tmp_path_factory) -> dict:
    """The recipe of a run that has made two updates of two, at a constant rate of 1e-3."""
    recipe = small_recipe(nano_checkpoint, tmp_path_factory.mktemp("begun"))
    recipe = changed(recipe, trainer={"max_steps": 2, "save_steps": 2}, rewards=[{"use": "compressibility"}])
    run(recipe)
    return recipe


@pytest.fixture
def resumable(begun, tmp_path) -> dict:
    """The same run, for the test alone."""
    shutil.copytree(begun["output_dir"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    return changed(begun, output_dir=str(tmp_path / "run"), trainer={"max_steps": 4})


def groups(folder: RunFolder) -> list[dict]:
    return torch.load(folder.path / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]


def test_a_rate_that_is_changed_counts(resumable):
    folder = run(resumable, resume=True, trainer={"learning_rate": 5e-4})
    assert logged(folder, "learning_rate") == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert [group["lr"] for group in groups(folder)] == [5e-4, 5e-4]


def test_whatever_the_optimizer_is_given_counts(resumable):
    """The schedule, decay, betas and epsilon, each from the first update after."""
    new = {"learning_rate": 4e-4, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    folder = run(resumable, resume=True, trainer={**new, "adam_beta2": 0.9, "adam_epsilon": 1e-6})
    assert logged(folder, "learning_rate")[2:] == pytest.approx([2e-4, 1e-4])
    assert [group["weight_decay"] for group in groups(folder)] == [0.1, 0.0]
    assert {group["betas"] for group in groups(folder)} == {(0.9, 0.9)}
    assert {group["eps"] for group in groups(folder)} == {1e-6}


def test_what_cannot_be_changed_is_found_before_anything_is_loaded(resumable, monkeypatch):
    monkeypatch.setattr("rl.train.load_decoder", None)
    with pytest.raises(UserError, match=r"trainer.optim is 'sgd', and .*checkpoint-2 was trained with 'adamw_torch_f"):
        run(resumable, resume=True, trainer={"optim": "sgd"})


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_rate_that_is_changed_counts_under_deepspeed(nano_checkpoint, tmp_path, stage):
    recipe = small_recipe(nano_checkpoint, tmp_path)
    schedule = {"lr_scheduler_type": "linear", "deepspeed": deepspeed(stage), "save_steps": 2}
    recipe = changed(recipe, trainer={**schedule, "max_steps": 2}, rewards=[{"use": "compressibility"}])
    launch(recipe, 1)
    new = {"learning_rate": 5e-4, "weight_decay": 0.1, "max_steps": 4}
    folder, _ = launch(recipe, 1, "--resume", trainer=new)
    assert logged(folder, "learning_rate")[2:] == pytest.approx([2.5e-4, 1.25e-4])


@pytest.mark.slow
def test_a_rate_that_is_changed_counts_in_deepspeeds_own_schedule(nano_checkpoint, tmp_path):
    settings = json.loads(Path(deepspeed("zero2")).read_text())
    warmup = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
    settings["scheduler"] = {"type": "WarmupDecayLR", "params": warmup}
    (tmp_path / "own.json").write_text(json.dumps(settings))
    recipe = small_recipe(nano_checkpoint, tmp_path)
    own = {"deepspeed": str(tmp_path / "own.json"), "save_steps": 2, "max_steps": 2, "lr_scheduler_type": "linear"}
    recipe = changed(recipe, trainer=own, rewards=[{"use": "compressibility"}])
    launch(recipe, 1)
    folder, _ = launch(recipe, 1, "--resume", trainer={"learning_rate": 5e-4, "max_steps": 4})
    whole = changed(recipe, output_dir=str(tmp_path / "whole"), trainer={"learning_rate": 5e-4, "max_steps": 4})
    assert logged(folder, "learning_rate")[2:] == pytest.approx(logged(launch(whole, 1)[0], "learning_rate")[2:])


@pytest.mark.parametrize("schedule", [lambda step: 1.0, lambda step: max(0.0, 1 - step / 10)])
def test_what_is_not_changed_stays_to_the_bit(schedule):
    def made(rate: float) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=rate)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    old, old_schedule = made(0.3)
    for _ in range(3):
        old.step()
        old_schedule.step()
    for rate in (0.3, 0.7):
        new, new_schedule = made(rate)
        settings = settings_of_groups(new)
        new.load_state_dict(old.state_dict())
        new_schedule.load_state_dict(old_schedule.state_dict())
        apply_settings(new, new_schedule, settings)
        expected = old.param_groups[0]["lr"] if rate == 0.3 else rate * schedule(3)
        assert new.param_groups[0]["lr"] == expected == new_schedule.get_last_lr()[0]
        new.step()
        new_schedule.step()
        assert new.param_groups[0]["lr"] == rate * schedule(4)


LORA = {"model": {"preset": "nano", "lora": {"r": 4}}}
STEERED = {"algorithm": {"beta": 0.02, "kl_control": {"target": 0.01}}}
STOPPED = {"prompts": "p.jsonl", "every": 1}


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ({}, {"trainer": {"optim": "sgd"}}, "trainer.optim"),
        ({"trainer": {"optim": "adafactor"}}, {}, "trainer.optim"),
        ({}, {"model": {"preset": "small"}}, "model.preset"),
        ({}, {"model": {"preset": "nano", "seed": 1}}, "model.seed"),
        ({}, LORA, "model.lora"),
        (LORA, {}, "model.lora"),
        (LORA, {"model": {"preset": "nano", "lora": {"r": 8}}}, "model.lora.r"),
        (LORA, {"model": {"preset": "nano", "lora": {"r": 4, "alpha": 8}}}, "model.lora.alpha"),
        (STEERED, {"algorithm": {"beta": 0.05, "kl_control": {"target": 0.01}}}, "algorithm.beta"),
        (
            {"evaluate": {**STOPPED, "early_stop": {"metric": "reward"}}},
            {"evaluate": {**STOPPED, "early_stop": {"metric": "color"}}},
            "evaluate.early_stop.metric",
        ),
    ],
)
def test_what_the_restored_state_would_override_is_refused(before, after, key, tmp_path):
    minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
    (tmp_path / "config.yaml").write_text(recipe_from_mapping({**minimal, **before}).to_yaml())
    check_resumed(recipe_from_mapping({**minimal, **before}), tmp_path)
    with pytest.raises(UserError, match=rf"^recipe: {re.escape(key)} is .*which a resumed run cannot change: "):
        check_resumed(recipe_from_mapping({**minimal, **after}), tmp_path)


def test_of_a_recipe_of_an_older_version_only_what_differs_is_said(tmp_path, capsys):
    """It names no setting that is newer than it, and one that is gone."""
    mapping = {"model": {"preset": "nano", "lora": {"r": 4}}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
    mapping |= {"evaluate": {"sets": {"one": {"prompts": "p.jsonl"}}}, "output_dir": str(tmp_path)}
    old = recipe_from_mapping(mapping).to_mapping()
    del old["distill"], old["records"], old["rollout"]["sizes"], old["rollout"]["engine"]
    del old["evaluate"]["sets"]["one"]["temperature"]
    old["model"]["lora"]["dropout"] = 0.0
    for settings, expected in (
        ({}, ""),
        ({"seed": 3}, "-seed: 0|+seed: 3"),
        ({"rollout": {"engine": "eager"}}, "-  engine: auto|+  engine: eager"),
        ({"records": {"picture_size": 0}}, "-  picture_size: 256|+  picture_size: 0"),
    ):
        (tmp_path / "config.yaml").write_text(dump_yaml(old))
        RunFolder(tmp_path).write_config(recipe_from_mapping({**mapping, **settings}))
        _, *changes = capsys.readouterr().out.splitlines() or [""]
        assert "|".join(line[2:] for line in changes) == expected
    former = {"use": "tiny.shapes:Shapes", "name": "shapes"}
    nested = {"use": "rank", "reward": dict(former)}
    now = [{**entry, "use": "rl.tiny.shapes:Shapes"} for entry in (former, former)]
    (tmp_path / "config.yaml").write_text(dump_yaml({**old, "rewards": [former, nested]}))
    RunFolder(tmp_path).write_config(
        recipe_from_mapping({**mapping, "rewards": [now[0], {"use": "rank", "reward": now[1]}]})
    )
    assert capsys.readouterr().out == ""
    (tmp_path / "config.yaml").write_text("gone: 1\nseed: 0\n")
    RunFolder(tmp_path).write_config(recipe_from_mapping(mapping))
    assert "  -gone: 1\n" in capsys.readouterr().out


ADAMW = {"type": "AdamW", "params": {"lr": 1e-3}}


def test_a_file_of_deepspeeds_that_is_replaced_is_noticed(tmp_path, capsys):
    """Its optimizer and schedule stay of their kind, as `trainer.optim` does; what they are set to may change."""
    file = tmp_path / "own.json"
    minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
    recipe = recipe_from_mapping({**minimal, "trainer": {"deepspeed": str(file)}, "output_dir": str(tmp_path)})
    file.write_text(json.dumps({"optimizer": ADAMW}))
    (tmp_path / "latest").write_text("global_step1")  # as DeepSpeed leaves it
    RunFolder(tmp_path).write_config(recipe)
    check_resumed(recipe, tmp_path)
    for content, key in (
        ({"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}}, r"optimizer\.type is 'SGD', .*with 'AdamW'"),
        ({}, r"optimizer\.type is null, .*with 'AdamW'"),
        ({"optimizer": ADAMW, "scheduler": {"type": "WarmupLR"}}, r"scheduler\.type is 'WarmupLR', .*with null"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"^recipe: trainer\.deepspeed\.{key}, which a resumed run cannot change"):
            check_resumed(recipe, tmp_path)
    file.write_text(json.dumps({"optimizer": {**ADAMW, "params": {"lr": 5e-4}}}))
    check_resumed(recipe, tmp_path)
    RunFolder(tmp_path).write_config(recipe)
    assert re.search(r"resumed with another recipe:\n +-.*lr: 0\.001\n +\+.*lr: 0\.0005\n", capsys.readouterr().out)
    (tmp_path / "config.yaml").write_text(recipe.to_yaml())  # of an older version, which kept the name
    check_resumed(recipe, tmp_path)


@pytest.mark.parametrize(("stage", "processes"), [(2, 1), (3, 2), (2, None), (None, 1), (3, 1)])
def test_an_optimizer_whose_state_is_not_read_may_be_another(tmp_path, monkeypatch, stage, processes):
    """The checkpoint was written by one process under ZeRO-3. processes: of the launcher; None for another count."""
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / "global_step1").mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step1")
    (checkpoint / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("")
    minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}

    def recipe(stage: int | None, kind: str, seed: int = 0) -> Recipe:
        if stage is None:
            trainer = {"optim": "sgd"}
        else:
            trainer = {"deepspeed": {"optimizer": {"type": kind}, "zero_optimization": {"stage": stage}}}
        return recipe_from_mapping({**minimal, "trainer": trainer, "model": {"preset": "nano", "seed": seed}})

    (checkpoint / "config.yaml").write_text(recipe(3, "AdamW").to_yaml())
    monkeypatch.setenv("WORLD_SIZE", str(processes or 4))
    if (stage, processes) == (3, 1):
        with pytest.raises(UserError, match=r"trainer\.deepspeed\.optimizer\.type is 'SGD'"):
            check_resumed(recipe(stage, "SGD"), checkpoint)
    else:
        check_resumed(recipe(stage, "SGD"), checkpoint)
        with pytest.raises(UserError, match=r"model\.seed is 1"):
            check_resumed(recipe(stage, "SGD", seed=1), checkpoint)


def test_the_checkpoint_that_is_loaded_is_checked(tmp_path, monkeypatch):
    """Not a newer one that is damaged, neither before the folder is taken nor after."""
    monkeypatch.chdir(tmp_path)

    def recipe(**settings) -> Recipe:
        minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
        return recipe_from_mapping({**minimal, "output_dir": "run", **settings})

    sgd, adam = recipe(trainer={"optim": "sgd"}), recipe()
    for step, made_with in ((1, sgd), (2, adam)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(made_with.to_yaml())
        (folder / "weights").write_text("whole")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}, "log_history": []}}')
        seal(folder)
    with pytest.raises(UserError, match="checkpoint-2 was trained with"):
        check_claim(sgd, resume=True)
    check_claim(adam, resume=True)
    (folder / "weights").write_text("other")
    check_claim(sgd, resume=True)
    assert _start_of(RunFolder("run"), sgd, True, {}).name == "checkpoint-1"
    with pytest.raises(UserError, match="checkpoint-1 was trained with 'sgd'"):
        _start_of(RunFolder("run"), adam, True, {})
    (folder / "config.yaml").write_text("cut: [")
    check_claim(sgd, resume=True)
    with pytest.raises(UserError, match="checkpoint-1 was trained with 'sgd'"):
        check_claim(adam, resume=True)


@pytest.mark.parametrize(
    "after",
    [
        {"trainer": {"learning_rate": 1.0, "max_steps": 9, "optim": "adamw_torch_fused"}},
        {"algorithm": {"beta": 0.05}},
        {"model": {"preset": "nano", "ema": {"decay": 0.5}}},
        {"rollout": {"height": 64}},
        {"seed": 3},
    ],
)
def test_what_counts_from_the_next_update_may_change(after, tmp_path):
    minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
    (tmp_path / "config.yaml").write_text(recipe_from_mapping(minimal).to_yaml())
    check_resumed(recipe_from_mapping({**minimal, **after}), tmp_path)


def test_a_checkpoint_may_have_moved(tmp_path):
    def recipe(path: Path) -> dict:
        return {"model": {"path": str(path)}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.yaml").write_text(recipe_from_mapping(recipe(tmp_path / "one")).to_yaml())
    with pytest.raises(UserError, match=r"model\.path is "):
        check_resumed(recipe_from_mapping(recipe(tmp_path / "two")), tmp_path)
    (tmp_path / "one").rename(tmp_path / "three")
    check_resumed(recipe_from_mapping(recipe(tmp_path / "two")), tmp_path)
    for damaged in ("cut: [", "", "- a list"):
        (tmp_path / "config.yaml").write_text(damaged)
        with pytest.raises(UserError, match=r"config\.yaml"):
            check_resumed(recipe_from_mapping(recipe(tmp_path / "three")), tmp_path)
    (tmp_path / "config.yaml").unlink()
    check_resumed(recipe_from_mapping(recipe(tmp_path / "three")), tmp_path)
