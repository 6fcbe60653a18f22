"""Samples as rows: what they hold, what is refused on reading, and training groups with what they were taught."""

import json
import math
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.training_runs import SMALL_DRAWING, changed, run, small_recipe

from rewards import RewardTable
from rl.config.recipe import recipe_from_mapping
from rl.data.prompts import PromptRecord
from rl.policy.completion import Completion
from rl.policy.samples import Sample
from rl.records.environment import environment
from rl.records.mirror import to_tensorboard, to_wandb
from rl.records.rows import (
    load_stored,
    picture_of,
    read_rows,
    reward_names,
    said_of,
    sample_rows,
    sources_of,
    write_rows,
    write_table,
)
from rl.report.paired import compare_rows
from rl.trainer.groups import GroupRecorder
from uniar.errors import UserError
from uniar.seeds import seed_of

PROMPTS = ["a red square", "<script>alert('赤')</script>"]


WRITTEN = [Completion(None, ("it is red", "größer"), "mine"), Completion(None, (), "draw")]


def rows_of(values: list[list[float]], details: dict | None = None, made: list[Completion] | None = None):
    scores = torch.tensor(values, dtype=torch.float64)
    table = RewardTable(("one", "two"), scores, torch.ones_like(scores), scores.isnan(), {}, details or {})
    samples = [Sample(PromptRecord(p, "draw", {"tag": "colors"}, id=str(n)), n) for n, p in enumerate(PROMPTS)]
    pictures = [picture_of(Image.new("RGB", (300, 600), colour)) for colour in ("red", "blue")]
    return sample_rows(samples, SMALL_DRAWING, table, scores.sum(1).tolist(), pictures, made)


def test_rows_are_what_was_drawn_and_scored(tmp_path):
    details = {"one": [{"why": "it is red"}, None], "two": [{"seen": 2, "asked": 3}, None]}
    write_rows(tmp_path / "evaluations" / "rows.parquet", rows_of([[0.5, 0.25], [1.0, math.nan]], details), 7)
    rows = read_rows(tmp_path / "evaluations" / "rows.parquet")
    first, second = rows.to_pylist()
    assert reward_names(rows) == ["one", "two"]
    assert (first["step"], first["id"], first["sample"], first["prompt"]) == (7, "0", 0, PROMPTS[0])
    assert (first["task"], first["tag"], first["episode"], first["advantage"]) == ("draw", "colors", "draw", None)
    assert (first["rewards/one"], first["rewards/two"], first["total"]) == (0.5, 0.25, 0.75)
    assert (second["prompt"], second["rewards/two"], second["total"]) == (PROMPTS[1], None, None)
    assert first["seed"] == seed_of("bits", SMALL_DRAWING.seed, 0, "0", 0)
    assert json.loads(first["details"]) == {"one": {"why": "it is red"}, "two": {"seen": 2, "asked": 3}}
    assert said_of(first["details"]) == "one: it is red; two: seen 2, asked 3"
    assert (second["details"], said_of(None)) == (None, "")
    image = load_stored(first["picture"])
    assert image.size == (128, 256)
    assert max(abs(a - b) for a, b in zip(image.getpixel((60, 100)), (255, 0, 0), strict=True)) < 6
    assert load_stored(picture_of(Image.new("RGB", (300, 600)), None)).size == (300, 600)
    assert picture_of(Image.new("RGB", (300, 600)), 0) is None


def test_what_samples_wrote_is_kept_under_their_episode(tmp_path):
    write_rows(tmp_path / "rows.parquet", rows_of([[0.5, 0.25], [1.0, 0.0]], made=WRITTEN), 7)
    rows = read_rows(tmp_path / "rows.parquet")
    assert rows["texts"].to_pylist() == [["it is red", "größer"], []]
    assert rows["episode"].to_pylist() == ["mine", "draw"]


def test_the_picture_asked_about_is_kept_once_for_all_samples_of_a_prompt(tmp_path):
    noisy = Image.effect_noise((64, 64), 90).convert("RGB")
    noisy.save(tmp_path / "asked.png")
    asked, plain = PromptRecord("what?", image=str(tmp_path / "asked.png"), id="1"), PromptRecord("draw", id="2")
    samples = [Sample(record, n) for record in (asked, plain) for n in range(20)]
    kept = sources_of(samples, 32)
    assert [load_stored(one).size for one in kept[:20]] == [(32, 32)] * 20
    assert kept[20:] == sources_of(samples, 0)[20:] == [None] * 20
    sizes, rows, path = [], rows_of([[0.5, 0.25], [1.0, 0.0]]), tmp_path / "rows.parquet"
    place = rows.schema.get_field_index("source")
    for number in (1, 20):
        source = pa.array(sources_of(samples, None)[:number])
        write_table(path, rows.take([0] * number).set_column(place, "source", source))
        assert read_rows(path)["source"].to_pylist() == source.to_pylist()
        sizes.append(pq.read_metadata(path).row_group(0).column(place).total_compressed_size)
    assert sizes[1] < 1.5 * sizes[0]
    (tmp_path / "asked.png").unlink()
    assert sources_of(samples, 32) == [None] * 40


def test_files_from_before_texts_were_kept_are_read(tmp_path):
    rows = rows_of([[0.5, 0.25], [1.0, 0.0]]).drop_columns(["texts", "source"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    for pictures in (True, False):
        rows = read_rows(tmp_path / "rows.parquet", pictures=pictures)
        assert rows["texts"].to_pylist() == [None, None]
        assert compare_rows(rows, rows).total.gain == 0


def test_mirrors_get_what_was_written_and_no_picture_where_there_is_none(monkeypatch):
    logged, wandb = {}, pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "log", logged.update)
    rows, drawn = rows_of([[0.5, 0.25], [1.0, 1.0]], made=WRITTEN[::-1]), Image.new("RGB", (8, 8))
    to_wandb(rows, {0: drawn, 1: None}, 7)
    table = logged["held_out_samples"]
    assert "source" not in table.columns
    assert [row[table.columns.index("texts")] for row in table.data] == ["", "it is red\ngrößer"]
    assert [row[table.columns.index("picture")] is None for row in table.data] == [False, True]
    assert len(logged["held_out"]) == 1
    noted = {"images": [], "texts": []}
    writer = SimpleNamespace(
        add_image=lambda name, *_, **how: noted["images"].append(name),
        add_text=lambda name, text, step: noted["texts"].append(text),
    )
    to_tensorboard([writer], rows, {0: drawn, 1: None}, 7)
    assert [name[:12] for name in noted["images"]] == ["held-out/000"]
    assert [" | it is red | größer | " in text for text in noted["texts"]] == [False, True]


def test_a_mirror_gets_what_rewards_say_without_addresses_and_paths(monkeypatch):
    logged, wandb = {}, pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "log", logged.update)
    drawn = Image.new("RGB", (300, 600), "red")
    said = {"why": "http://10.0.0.7:8000/v1 read /home/ada/judge.txt: it is red"}
    to_wandb(rows_of([[0.5, 0.25], [1.0, 1.0]], {"one": [said, None]}), {0: drawn}, 7)
    assert logged["held_out"][0].image.size == drawn.size  # of the row's own picture it is 128 x 256
    table = logged["held_out_samples"]
    details = table.data[0][table.columns.index("details")]
    for text in (details, logged["held_out"][0]._caption):
        assert "it is red" in text
        assert "10.0.0.7" not in text
        assert "ada" not in text


def test_what_is_not_rows_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(UserError, match=r"rows\.parquet' do not exist\.$"):
        read_rows(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="are not a whole Parquet file: "):
        read_rows(path)
    pq.write_table(rows_of([[1.0, 1.0]] * 2).drop_columns(["seed"]), path)
    with pytest.raises(UserError, match="have the column 'seed' as none; expected int64"):
        read_rows(path)


def test_the_environment_keeps_no_secret_and_no_path():
    command = ["/home/ada/.venv/bin/uniar-rl", "train", "/home/ada/mine.yaml", "rewards.0.api_key=sk-abcdefghijkl"]
    found = environment(2, command)
    assert found["command"] == "uniar-rl train mine.yaml 'rewards.0.api_key=<secret>'"
    assert found["processes"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["cores"] > 0
    assert "ada" not in json.dumps(found)


@pytest.mark.parametrize("section", [None, {}], ids=["plain", "dynamic"])
def test_only_images_that_may_be_kept_are_asked_for(nano_checkpoint, tmp_path, section):
    """Three groups of four on two processes, of which one is kept."""
    recipe = changed(small_recipe(nano_checkpoint, tmp_path), rollout={"dynamic_sampling": section})

    def asked(rank: int, step: int = 0, **kept) -> list[int]:
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(process_index=rank),
            state=SimpleNamespace(global_step=step),
            updates_of_rollout=1,
        )
        settings = recipe_from_mapping(changed(recipe, records={"groups": 1, **kept}))
        return list(GroupRecorder(trainer, settings, SimpleNamespace(rewards=None), print).pictured(6))

    everything = [0, 1, 2, 3, 4, 5]
    assert [asked(0), asked(1)] == ([[0, 1, 2, 3], []] if section is None else [everything, everything])
    assert [asked(0, groups=2), asked(1, groups=2)] == [everything, [0, 1] if section is None else everything]
    assert asked(0, step=1) == asked(0, picture_size=0) == []


def test_a_run_keeps_its_samples_and_what_they_taught(nano_checkpoint, tmp_path):
    recipe = small_recipe(nano_checkpoint, tmp_path)
    held_out = {"prompts": recipe["data"]["prompts"], "samples_per_prompt": 2, "every": 1, "grid_prompts": 0}
    kept = {"groups_every": 2, "groups": 1, "picture_size": 32, "report": False}
    settings = changed(recipe, evaluate=held_out, records=kept, trainer={"save_steps": 1})
    folder = run(settings)
    assert sorted(file.name for file in folder.groups.iterdir()) == ["step-000001.parquet", "step-000003.parquet"]
    for step in (1, 2, 3):
        rows = read_rows(folder.rows(step))
        assert rows["step"].to_pylist() == [step] * 8
        assert rows["total"].to_pylist() == folder.evaluated_totals()[step].tolist()
    group = read_rows(folder.groups / "step-000003.parquet").to_pylist()
    assert [row["sample"] for row in group] == [0, 1, 2, 3]
    assert len({row["id"] for row in group}) == 1
    totals = torch.tensor([row["total"] for row in group], dtype=torch.float64)
    taught = (totals - totals.mean()) / (totals.std() + 1e-4)
    assert [row["advantage"] for row in group] == pytest.approx(taught.tolist(), abs=1e-4)
    assert load_stored(group[0]["picture"]).size == (32, 32)
    assert json.loads(folder.environment.read_text())["processes"] == 1
    trained = [line for line in folder.read() if "loss" in line]
    assert [line["throughput/images"] for line in trained] == [8, 8, 8]
    assert {line["throughput/tokens"] for line in trained} == {8 * 4}
    assert all(line["throughput/images_per_second"] > 0 and line["memory/peak_gb"] > 0 for line in trained)
    assert [line["time"] for line in folder.read()] == sorted(line["time"] for line in folder.read())

    before = {file: file.read_bytes() for part in (folder.groups, folder.evaluations) for file in part.iterdir()}
    for part in ("checkpoint-3", "checkpoint-2", "final"):
        shutil.rmtree(folder.path / part)
    again = run(settings, resume=True)
    assert {file: file.read_bytes() for part in (again.groups, again.evaluations) for file in part.iterdir()} == before
