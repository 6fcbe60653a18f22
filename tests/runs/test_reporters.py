"""Metrics, sample grids and the recipe in TensorBoard and W&B, by the Trainer's `report_to`."""

import json
import struct
import sys
from pathlib import Path

import pytest
import wandb
from support.training_runs import COLOURS, run, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.proto.wandb_internal_pb2 import Record

from rl.config.grpo_config import grpo_config
from rl.config.recipe import recipe_from_mapping
from rl.evaluation.evaluate import held_out_otherwise
from rl.trainer.wandb_session import refusal, reporting
from uniar.configuration_uniar import UniARConfig


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    recipe["evaluate"] |= {"prompts": recipe["data"]["prompts"], "at_start": True, "at_end": True}
    recipe["algorithm"] = {"beta": 0.01, "loss": "gspo"}
    recipe["trainer"] |= {"max_steps": 2, "save_strategy": "no"}
    return recipe


def wandb_records(file: Path) -> list[Record]:
    """All that an offline run has kept for the server: LevelDB's log format after a header of 7 bytes, in which a
    record is in pieces, each with checksum, length and kind (1 whole, 2 first, 3 middle, 4 last), none over the border
    of a block."""
    content, place, records, data = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(data))
            data = b""
    return records


def test_tensorboard_and_wandb_get_metrics_pictures_and_the_recipe(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    logs = tmp_path / "logs"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
    monkeypatch.setattr(sys, "argv", ["uniar-rl", "train", "mine.yaml", "rewards.0.api_key=plain-words"])
    run(settings, trainer={"report_to": ["tensorboard", "wandb"]})
    assert wandb.run is None

    events = EventAccumulator(str(logs))
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name in ("train/reward", "train/kl", "train/entropy", "train/seconds/rollout", "eval/reward", "eval/color"):
        assert name in scalars, name
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2]
    assert [event.step for event in events.Scalars("eval/reward")] == [0, 2]
    tags = sorted(events.Tags()["images"])
    assert [tag.split(" ", 1)[1] for tag in tags] == [f"a {colour} square" for colour in COLOURS]
    pictures = events.Images(tags[0])
    assert [picture.step for picture in pictures] == [0, 2]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    (caption, _) = events.Tensors(f"{tags[0]}/text_summary")
    assert caption.tensor_proto.string_val[0].startswith(b"a red square | total 0.")
    (args,) = events.Tensors("args/text_summary")
    check_config(json.loads(args.tensor_proto.string_val[0]))
    started = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(started).session_start_info.hparams
    assert hparams["algorithm.beta"].number_value == 0.01
    assert hparams["algorithm.loss"].string_value == "gspo"
    assert hparams["trainer.learning_rate"].number_value == 1e-3

    (offline,) = tmp_path.glob("wandb/offline-run-*")
    assert len(list(offline.glob("files/media/images/held_out_*.png"))) == 2 * len(COLOURS)
    tables = sorted(offline.glob("files/media/table/held_out_samples_*.table.json"))
    assert len(tables) == 2
    table = json.loads(tables[0].read_text())
    assert {"id", "prompt", "tag", "total", "rewards/color", "details", "seed", "picture"} <= set(table["columns"])
    assert [row[table["columns"].index("prompt")] for row in table["data"]] == [
        f"a {colour} square" for colour in COLOURS
    ]
    records = wandb_records(next(offline.glob("*.wandb")))
    (started,) = [record.run for record in records if record.HasField("run")]
    assert (started.project, started.display_name) == ("uniar-rl", "run")
    assert (started.host, started.HasField("git")) == ("", False)
    assert not any(record.HasField("environment") for record in records)
    config = {
        item.key: json.loads(item.value_json)
        for record in records
        if record.HasField("config")
        for item in record.config.update
        if item.key
    }
    check_config(config)
    sent = b"".join(path.read_bytes() for path in (*offline.glob("*.wandb"), *offline.glob("files/*.*")))
    for kept in ("plain-words", str(tmp_path), settings["model"]["path"], sys.executable, "[1/2]"):
        assert kept.encode() not in sent, kept


def check_config(config: dict) -> None:
    """The recipe's sections, and nothing that TRL was told in their place."""
    assert (config["algorithm"]["beta"], config["algorithm"]["loss"]) == (0.01, "gspo")
    assert config["rewards"] == [{"use": "color", "color": "red", "softness": 0.6, "tolerance": 0.2}]
    assert config["rollout"]["samples_per_prompt"] == 4
    assert (config["trainer"]["max_steps"], config["trainer"]["adam_beta2"]) == (2, 0.999)
    for owned in ("beta", "loss_type", "scale_rewards", "num_generations", "temperature"):
        assert owned not in config
        assert owned not in config["trainer"]


@pytest.mark.parametrize(
    ("variable", "trainer", "project", "name"),
    [
        (None, {}, "uniar-rl", "run"),
        ("mine", {}, "mine", "run"),
        ("mine", {"project": "said", "run_name": "the third"}, "said", "the third"),
    ],
)
def test_project_and_run_are_named_by_recipe_environment_and_folder(
    settings, monkeypatch, variable, trainer, project, name
):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    settings["trainer"] |= trainer
    args = grpo_config(
        recipe_from_mapping(settings), UniARConfig.from_pretrained(settings["model"]["path"]).vision_config
    )
    assert (args.project, args.run_name) == (project, name)


def test_what_parts_held_out_from_training_rewards_is_named(settings):
    drawn = {"temperature": 1.0, "guidance_scale": 2.0}
    settings["rollout"] |= {"guidance": "guided", **drawn}
    settings["evaluate"] |= drawn

    def otherwise(**sections):
        return held_out_otherwise(recipe_from_mapping({**settings, **sections}))

    assert otherwise() is None
    assert otherwise(eval_rewards=settings["rewards"]) is None
    assert otherwise(eval_rewards=["sharpness"]) == "other rewards"
    assert otherwise(eval_rewards=[{**settings["rewards"][0], "softness": 0}]) == "other rewards"
    held_out = {**settings["evaluate"], "temperature": 0.5, "guidance_scale": 1.0}
    assert otherwise(evaluate=held_out) == "temperature 0.5, guidance off"


def test_keys_and_addresses_are_not_reported(settings):
    """W&B, TensorBoard and trackio take what to_dict gives."""
    settings["rewards"].append(
        {"use": "remote", "url": "http://gpu7:8000", "extra": {"api_key": "plain", "to": "see sk-abcdefghijkl"}}
    )
    recipe = recipe_from_mapping(settings)
    given = grpo_config(recipe, UniARConfig().vision_config).to_dict()
    assert given["rewards"][-1] == {
        "use": "remote",
        "url": "<URL>",
        "extra": {"api_key": "<secret>", "to": "see <secret>"},
    }
    assert given["data"]["prompts"] == Path(settings["data"]["prompts"]).name
    assert given["model"]["path"] == Path(settings["model"]["path"]).name
    assert recipe.to_mapping()["rewards"][-1]["url"] == "http://gpu7:8000"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_offline_by_its_settings_file_needs_no_key(tmp_path, monkeypatch, mode):
    """`wandb offline` writes one."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert refusal() is not None
    (tmp_path / "settings").write_text(f"[default]\nmode = {mode}\n")
    assert refusal() is None


@pytest.fixture
def reported(settings, tmp_path, monkeypatch):
    """A run's arguments, with W&B among the reporters."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings["trainer"]["report_to"] = "wandb"
    return grpo_config(recipe_from_mapping(settings), UniARConfig().vision_config)


def test_each_run_of_a_process_is_served_by_the_environment_as_it_is_then(reported, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "40+ characters" in refusal()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert refusal() is None
    for started in (1, 2):
        with reporting(reported):
            wandb.log({"reward": 1.0})
        assert wandb.run is None
        assert len(list(tmp_path.glob("wandb/offline-run-*"))) == started
    monkeypatch.delenv("WANDB_MODE")
    assert "40+ characters" in refusal()


def test_wandb_is_told_that_a_run_has_failed(reported, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ZeroDivisionError), reporting(reported):
        raise ZeroDivisionError
    records = wandb_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    assert wandb.run is None


def test_what_the_user_has_begun_at_wandb_stays_theirs(reported, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(project="theirs") as theirs:
        assert refusal() is None
        with reporting(reported):
            assert wandb.run is theirs
        assert wandb.run is theirs
    wandb.teardown()
