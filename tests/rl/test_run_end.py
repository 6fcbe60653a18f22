"""The start and the end of a run: what is missing is made when it is resumed, and nothing is trained twice."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support.training_runs import changed, logged, run, small_recipe, weights

from rl.cli import main
from rl.run.folder import RunFolder
from rl.trainer.callbacks import RunCallback
from rl.trainer.trainer import UniARTrainer
from uniar.errors import UserError


@pytest.fixture(scope="module")
def whole(nano_checkpoint, tmp_path_factory) -> tuple[dict, RunFolder]:
    """A recipe of three updates, the last in the middle of an epoch, and the run of it that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    settings = changed(
        small_recipe(nano_checkpoint, folder),
        evaluate={"prompts": str(folder / "held_out.jsonl"), "at_start": True, "at_end": True},
        trainer={"save_steps": 2},
    )
    return settings, run(settings)


@pytest.fixture
def copied(whole, tmp_path) -> tuple[dict, RunFolder]:
    """The same, in a folder of its own."""
    settings, folder = whole
    copy = shutil.copytree(folder.path, tmp_path / "run")
    return changed(settings, output_dir=str(copy)), RunFolder(copy)


@pytest.fixture
def no_update(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("an update is made")

    monkeypatch.setattr(UniARTrainer, "training_step", refuse)


def timeless(folder: RunFolder) -> list[dict]:
    """The metrics without what depends on the machine: times, and the memory of this process."""
    return [
        {key: value for key, value in line.items() if not any(word in key for word in ("second", "time", "memory"))}
        for line in folder.read()
    ]


def require_same(found: RunFolder, expected: RunFolder) -> None:
    assert timeless(found) == timeless(expected)
    one, two = weights(expected.final), weights(found.final)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sorted(file.name for file in found.path.iterdir()) == sorted(file.name for file in expected.path.iterdir())


@pytest.mark.parametrize("how", ["--resume", "resume=auto"])
def test_a_finished_run_is_left_as_it_is(copied, no_update, capsys, how):
    settings, folder = copied
    (folder.final / "README.md").write_text("what its keeper says of it")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.path.rglob("*") if file.is_file()}
    (folder.path.parent / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["train", str(folder.path.parent / "recipe.yaml"), how]) == 0
    output = capsys.readouterr().out
    assert f"{folder.path} is finished after update 3" in output
    assert "held-out reward:" in output
    assert "[3/3]" not in output
    del before[folder.path / ".lock"]
    assert all((file.read_bytes(), file.stat().st_mtime_ns) == then for file, then in before.items())


def remove_final(folder: RunFolder) -> None:
    shutil.rmtree(folder.final)
    folder.finished.unlink()


def cut_final(folder: RunFolder) -> None:
    (folder.final / "model.safetensors").write_bytes((folder.final / "model.safetensors").read_bytes()[:1000])


def half_replaced(folder: RunFolder) -> None:
    """As when it was killed between the two renamings of the export."""
    folder.final.rename(folder.path / "final.replaced")
    (folder.path / "final.partial").mkdir()


def not_recorded(folder: RunFolder) -> None:
    folder.finished.write_text("")


@pytest.mark.parametrize("damage", [remove_final, cut_final, half_replaced, not_recorded])
def test_what_is_missing_at_the_end_is_made_and_nothing_trained(whole, copied, no_update, capsys, damage):
    settings, folder = copied
    damage(folder)
    run(settings, resume=True)
    require_same(folder, whole[1])
    assert "/3] reward" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["SIGTERM", "max_runtime"])
def test_stopped_in_the_last_update(whole, tmp_path, monkeypatch, capsys, how):
    settings = changed(whole[0], output_dir=str(tmp_path / "run"))
    on_step_end = RunCallback.on_step_end

    def stopped_at_the_last(self, args, state, control, **kwargs):
        if state.global_step == 3 and how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        elif state.global_step == 3:
            self.stopper.max_runtime = 1e-9
        return on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_end", stopped_at_the_last)
    assert run(settings) is None
    assert f"stopped by {how} after update 3; go on with --resume" in capsys.readouterr().out
    assert not (tmp_path / "run" / "final").exists()
    monkeypatch.setattr(UniARTrainer, "training_step", None)
    require_same(run(settings, resume=True), whole[1])


def test_fewer_updates_than_were_made(copied, no_update, capsys):
    settings, folder = copied
    run(settings, resume=True, trainer={"max_steps": 2})
    assert "is finished after update 3" in capsys.readouterr().out
    folder.finished.unlink()
    run(settings, resume=True, trainer={"max_steps": 2})
    output = capsys.readouterr().out
    assert "[3/2]" not in output
    assert "[3/3]  held-out reward" in output


def test_a_run_that_stopped_early_stays_stopped(whole, tmp_path, no_update, monkeypatch, capsys):
    monkeypatch.undo()
    stop = {"patience": 2, "min_delta": 2.0}
    settings = changed(
        whole[0], evaluate={"every": 1, "early_stop": stop}, trainer={"max_steps": 9}, output_dir=str(tmp_path / "run")
    )
    folder = run(settings)
    expected = timeless(folder), weights(folder.final)
    assert [line["step"] for line in folder.read() if "reward" in line] == [1, 2]
    assert (folder.path / "checkpoint-2").is_dir()
    monkeypatch.setattr(UniARTrainer, "training_step", None)
    for damage in (lambda: None, lambda: remove_final(folder)):
        damage()
        capsys.readouterr()
        run(settings, resume=True)
        assert "stopped after update 2: held-out reward has not risen" in capsys.readouterr().out
        assert timeless(folder) == expected[0]
        assert all(torch.equal(tensor, weights(folder.final)[name]) for name, tensor in expected[1].items())
    monkeypatch.undo()
    run(settings, resume=True, evaluate={"every": 1, "early_stop": {**stop, "patience": 3}})
    assert [line["step"] for line in folder.read() if "reward" in line] == [1, 2, 3]


# Before the first checkpoint -----------------------------------------------------------------------------------------


def test_a_run_that_was_ended_before_its_first_checkpoint_begins_anew(whole, tmp_path, monkeypatch, capsys):
    settings = changed(whole[0], output_dir=str(tmp_path / "run"))

    def ended(*_, **__):
        raise RuntimeError("the power went")

    monkeypatch.setattr(UniARTrainer, "training_step", ended)
    with pytest.raises(RuntimeError, match="power"):
        run(settings)
    folder = RunFolder(tmp_path / "run")
    assert [line["step"] for line in folder.read()] == [0]
    with pytest.raises(UserError, match="resume that run with --resume"):
        run(settings)
    with pytest.raises(RuntimeError, match="power"):  # which works, as far as it gets
        run(settings, resume=True)
    assert f"{folder.path} has no checkpoint yet: the run begins anew" in capsys.readouterr().out
    monkeypatch.undo()
    require_same(run(changed(settings, resume="auto")), whole[1])


def test_what_cannot_be_resumed_says_why(copied, tmp_path, no_update):
    settings, folder = copied
    with pytest.raises(UserError, match=r"never holds no run to resume; leave out --resume to begin one\."):
        run(settings, resume=True, output_dir=str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()
    more = {"max_steps": 5}
    for number in (2, 3):
        (folder.path / f"checkpoint-{number}" / "scheduler.pt").write_bytes(b"")
    for how in ({"resume": True}, {"trainer": more}):
        with pytest.raises(UserError, match=r"has a trained model in final/, and no whole checkpoint to train on from"):
            run(changed(settings, resume="auto", trainer=more), **how)
    remove_final(folder)
    with pytest.raises(
        UserError, match=r"no whole checkpoint to resume from: of checkpoint-3, scheduler\.pt has 0 bytes"
    ):
        run(settings, resume=True)
    for number in (2, 3):
        shutil.rmtree(folder.path / f"checkpoint-{number}")
    folder.final.write_text("in the way")
    with pytest.raises(UserError, match="final exists and is not a checkpoint folder"):
        run(settings, resume=True)


# Other data ----------------------------------------------------------------------------------------------------------


def test_data_that_was_replaced_is_noticed(copied, tmp_path, capsys):
    settings, folder = copied
    remove_final(folder)
    prompts, held_out = Path(settings["data"]["prompts"]), Path(settings["evaluate"]["prompts"])
    for file, key in ((prompts, "data.prompts"), (held_out, "evaluate.prompts")):
        content = file.read_text()
        try:
            file.write_text(content.replace("red", "pink"))
            with pytest.raises(UserError, match=rf"{key}: {file} is not what the run was begun with"):
                run(settings, resume=True)
        finally:
            file.write_text(content)
    (tmp_path / "other.jsonl").write_text('{"prompt": "a pink circle"}\n')
    (tmp_path / "moved.jsonl").write_text(prompts.read_text())
    again = run(
        settings,
        resume=True,
        data={"prompts": str(tmp_path / "moved.jsonl")},
        evaluate={"prompts": str(tmp_path / "other.jsonl")},
    )
    output = capsys.readouterr().out
    assert "evaluate.prompts: other data than before the run was resumed (2 records then, 1 now)" in output
    assert "data.prompts: other data" not in output  # another name for the same
    assert set(again.evaluated_totals()) == {3}  # the start's is of others
    assert len(logged(again, "eval_reward")) == 2
