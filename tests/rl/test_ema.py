"""The average of the weights: what it is, on one process and several, resumed, evaluated and exported."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.training_runs import deepspeed, launch, logged, run, small_recipe, weights

from rl.checkpoint.folders import newest_good
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.checkpoint.tensor_files import averaged_weights
from rl.checkpoint.weights import trained_weights
from rl.cli import main
from rl.config.recipe import recipe_from_mapping
from rl.distributed.weight_slices import SlicedFiles
from uniar.errors import UserError

EMA = {"decay": 0.75}


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return small_recipe(nano_checkpoint, tmp_path)


def close(found: dict, expected: dict, tolerance: float) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], rtol=0, atol=tolerance) for name in expected
    )


def test_it_is_the_average_of_the_checkpoints(settings, nano_checkpoint):
    model = {"ema": {**EMA, "update_every": 2}}
    folder = run(settings, model=model, trainer={"max_steps": 4, "save_steps": 1})
    before = load_file(nano_checkpoint / "model.safetensors")
    second, fourth = (trained_weights(folder.path / f"checkpoint-{step}", nano_checkpoint) for step in (2, 4))
    averaged = averaged_weights(folder.path / "checkpoint-4")
    for name in averaged:
        expected = 0.75 * (0.75 * before[name] + 0.25 * second[name]) + 0.25 * fourth[name]
        assert torch.allclose(averaged[name], expected, atol=1e-6), name
    assert not {name for name in averaged if name.startswith(("model.visual.", "lm_head."))}
    assert not torch.equal(
        averaged["model.language_model.embed_tokens.weight"], fourth["model.language_model.embed_tokens.weight"]
    )
    third, unmoved = (dict(averaged_weights(folder.path / f"checkpoint-{step}")) for step in (3, 2))
    assert close(third, unmoved, 0.0)


def test_it_is_evaluated_and_exported_where_the_recipe_says_so(settings, tmp_path, capsys):
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "a red circle"}) + "\n")
    held_out = {"prompts": str(tmp_path / "held_out.jsonl"), "every": 1, "temperature": 1.0, "samples_per_prompt": 8}
    model = {"ema": {"decay": 0.999}}
    # Every update moves the policy far, and its average hardly.
    trainer = {"learning_rate": 3e-3}
    trained = run(settings, model=model, evaluate=held_out, trainer=trainer, output_dir=str(tmp_path / "trained"))
    averaged = run(
        settings,
        model=model,
        evaluate={**held_out, "at_start": True, "ema": True},
        trainer=trainer,
        output_dir=str(tmp_path / "averaged"),
    )
    # The training is the same one: the policy has its own weights back after every evaluation.
    assert logged(trained, "loss") == logged(averaged, "loss")
    assert logged(trained, "grad_norm") == logged(averaged, "grad_norm")
    at_start, *later = logged(averaged, "eval_reward")
    assert later[-1] == pytest.approx(at_start, abs=0.02)
    assert abs(logged(trained, "eval_reward")[-1] - at_start) > 0.05

    for flags, expected in (((), trained), (("--ema",), averaged)):
        output = tmp_path / f"exported{len(flags)}"
        assert main(["export", str(trained.path / "checkpoint-3"), *flags, "--verify", "--output", str(output)]) == 0
        assert close(weights(output), weights(expected.final), 1e-6)
    assert "exported the averaged weights of" in capsys.readouterr().out
    card = (tmp_path / "exported1" / "README.md").read_text()
    assert "exponential moving average of the trained ones (decay 0.999, moved every 1 updates)" in card
    assert "| reward |" not in card  # this run's evaluations were of the trained weights
    assert "| reward |" in (averaged.final / "README.md").read_text()


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_resumed_average_is_the_uninterrupted_one(settings, tmp_path, lora):
    model = {"ema": {**EMA, "device": "cpu"}, "lora": lora}
    trainer = {"max_steps": 4, "save_steps": 2}
    whole = run(settings, model=model, trainer=trainer, output_dir=str(tmp_path / "whole"))
    run(settings, model=model, trainer={**trainer, "max_steps": 2}, output_dir=str(tmp_path / "parts"))
    parts = run(settings, resume=True, model=model, trainer=trainer, output_dir=str(tmp_path / "parts"))
    expected, found = (dict(averaged_weights(folder.path / "checkpoint-4")) for folder in (whole, parts))
    assert close(found, expected, 0.0)


def test_an_adapter_s_average_alone(settings, tmp_path):
    folder = run(settings, model={"ema": EMA, "lora": {"r": 4}})
    command = ["export", str(folder.path / "checkpoint-3"), "--ema", "--adapter-only", "--verify", "--output"]
    assert main([*command, str(tmp_path / "adapter")]) == 0
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    averaged = averaged_weights(folder.path / "checkpoint-3")
    assert found.keys() == {name.replace(".default.", ".") for name in averaged}


def test_a_run_resumed_with_an_average_it_did_not_have_begins_one(settings, caplog):
    run(settings, trainer={"max_steps": 2, "save_steps": 2})
    folder = run(settings, resume=True, model={"ema": EMA})
    assert "checkpoint-2 has no ema, which starts anew" in caplog.text
    assert averaged_weights(folder.path / "checkpoint-3")


def test_the_main_process_alone_says_what_starts_anew(tmp_path, caplog):
    class Numbers(StatefulCallback):
        name = "numbers"

    for is_main in (False, True):
        callback = Numbers()
        callback.attach(SimpleNamespace(accelerator=SimpleNamespace(is_main_process=is_main), resumed_from=tmp_path))
        callback.on_train_begin(None, None, None)
        assert ("has no numbers.json, which starts anew" in caplog.text) == is_main


def test_what_does_not_go_together_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.ema is true, but there is no average to evaluate; set model\.ema"):
        recipe_from_mapping({**settings, "evaluate": {"ema": True}})
    with pytest.raises(UserError, match=r"model\.ema\.decay is 1, expected a number ≥ 0 and < 1"):
        recipe_from_mapping({**settings, "model": {**settings["model"], "ema": {"decay": 1}}})
    folder = run(settings)
    with pytest.raises(UserError, match=r"checkpoint-3 has no averaged weights; its run had no model\.ema"):
        averaged_weights(folder.path / "checkpoint-3")


def test_sliced_files(tmp_path, monkeypatch):
    weight = torch.arange(10.0).view(2, 5)
    for rank, (start, stop) in enumerate([(0, 4), (4, 10)]):
        places = json.dumps({"w": {"start": start, "shape": [2, 5]}})
        file = tmp_path / f"{rank:05d}.safetensors"
        save_file({"w": weight.flatten()[start:stop].clone()}, file, {"places": places})
    assert torch.equal(SlicedFiles(tmp_path)["w"], weight)
    with monkeypatch.context() as patched:
        patched.setattr(SlicedFiles, "read", lambda *_: pytest.fail("a weight was read"))
        assert "w" in SlicedFiles(tmp_path)
        assert "v" not in SlicedFiles(tmp_path)
    assert SlicedFiles(tmp_path).read("w", 3, 6).tolist() == [3, 4, 5]
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(UserError, match="lacks elements 4 to 10 of w: a rank's file is missing"):
        SlicedFiles(tmp_path)["w"]
    places = json.dumps({"w": {"start": 0, "shape": [2, 5]}})
    stale = torch.full((10,), 7.0)
    save_file({"w": weight.flatten()}, tmp_path / "00000.safetensors", {"places": places, "ranks": "1"})
    save_file({"w": stale}, tmp_path / "00001.safetensors", {"places": places, "ranks": "2"})
    assert torch.equal(SlicedFiles(tmp_path)["w"], weight)  # of a save by two ranks before
    save_file({"w": weight.flatten()}, tmp_path / "00000.safetensors", {"places": places, "ranks": "3"})
    with pytest.raises(UserError, match=r"has no 00002\.safetensors: a rank's file is missing"):
        SlicedFiles(tmp_path)
    (tmp_path / "00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read as slices of weights"):
        SlicedFiles(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_processes_average_what_one_does(settings, tmp_path, engine, lora):
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    evaluate = {"prompts": str(tmp_path / "held_out.jsonl"), "ema": True, "every": 1, "temperature": 1.0}
    sections = {"model": {**settings["model"], "ema": EMA, "lora": lora}, "evaluate": evaluate}
    trainer = {"max_steps": 4, "save_steps": 2}
    one = run(settings, **sections, trainer=trainer, output_dir=str(tmp_path / "one"))
    trainer |= {"per_device_train_batch_size": 4} | ({} if engine == "ddp" else {"deepspeed": deepspeed(engine)})
    two, _ = launch(settings, 2, **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    expected, found = (dict(averaged_weights(folder.path / "checkpoint-4")) for folder in (one, two))
    assert close(found, expected, 1e-4)
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-4)
    assert logged(two, "eval_reward") == pytest.approx(logged(one, "eval_reward"), abs=1e-5)
    assert close(weights(two.final), weights(one.final), 1e-4)
    assert main(["export", str(two.path / "checkpoint-4"), "--ema", "--output", str(tmp_path / "later")]) == 0
    assert close(weights(tmp_path / "later"), weights(two.final), 1e-6)

    # And resumed from the middle, to the bit.
    losses = logged(two, "loss")
    (two.path / "checkpoint-4" / "manifest.json").unlink()
    assert newest_good(two.path).name == "checkpoint-2"
    resumed, _ = launch(settings, 2, "--resume", **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(resumed, "loss") == losses
    assert close(dict(averaged_weights(two.path / "checkpoint-4")), found, 0.0)


@pytest.mark.slow
def test_an_error_on_one_process_ends_the_run_while_the_average_is_in_place(settings, tmp_path):
    """Bringing the policy's own weights back needs every process: one that fails must not wait for the others."""
    (tmp_path / "mine.py").write_text(
        "import os\n\ndef fails(prompts, images):\n    if os.environ['RANK'] == '1':\n"
        "        raise ValueError('broken here')\n    return [0.0] * len(images)\n"
    )
    (tmp_path / "held_out.jsonl").write_text("".join(f'{{"prompt": "a circle {n}"}}\n' for n in range(16)))
    evaluate = {"prompts": str(tmp_path / "held_out.jsonl"), "ema": True, "at_start": True}
    _, output = launch(
        settings,
        2,
        fails=True,
        model={**settings["model"], "ema": EMA},
        evaluate={**settings["evaluate"], **evaluate},
        eval_rewards=[{"use": f"{tmp_path / 'mine.py'}:fails", "retries": 0}],
        decode={"batch_size": 4},  # two batches of eight prompts, one for each process
        trainer={"per_device_train_batch_size": 4},
    )
    assert "raised ValueError: broken here" in output
