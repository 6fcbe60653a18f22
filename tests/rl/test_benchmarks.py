"""Benchmarks: their prompts in every form, what a table says, what official scorers are given, and whole runs."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.benchmark_files import DPG, EDITS, GENEVAL, LONGTEXT, SMALL, TEXT, of_uniar, published, write_lines
from support.training_runs import SMALL_DRAWING

from rewards import RewardTable
from rewards.judge.questions import questions_of
from rl.benchmarks.catalog import BENCHMARKS, SHAPES_PROMPTS
from rl.benchmarks.folder import BenchmarkFolder, image_record
from rl.benchmarks.official import check_official, write_official
from rl.benchmarks.published import read_benchmark
from rl.benchmarks.table import score_table
from rl.cli import main
from rl.policy.samples import Sample
from rl.records.rows import read_rows, sample_rows
from uniar.drawn_files import read_record
from uniar.errors import UserError

# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TEXT, "imgedit"])
def test_a_prompt_is_the_same_in_each_form_of_its_file(name, tmp_path):
    one = read_benchmark(name, str(published(name, tmp_path)))
    two = read_benchmark(name, str(of_uniar(name, tmp_path)))
    assert [record.id for record in one] == [record.id for record in two] == ["0", "1", "2"][: len(one)]
    assert [record.prompt for record in one] == [record.prompt for record in two]
    for first, second in zip(one, two, strict=True):
        ours = {key: value for key, value in first.metadata.items() if key not in ("id", "input_image")}
        assert ours == {key: second.metadata[key] for key in ours}
        assert first.image == second.image
    assert len(read_benchmark(name, str(published(name, tmp_path / "again")), limit=1)) == 1


def test_what_the_metadata_says_of_each():
    geneval2 = BENCHMARKS["geneval2"]
    assert (geneval2.drawing.images, geneval2.groups) == (1, ("atom_count",))
    settings = {name: (b.drawing.height, b.drawing.width, b.drawing.images) for name, b in BENCHMARKS.items()}
    assert settings["geneval"] == (512, 512, 4)
    assert settings["oneig"] == settings["longtext"] == (704, 1280, 4)
    assert settings["imgedit"] == (512, 512, 1)
    guidance = {name: (b.drawing.guidance, b.drawing.upsampling_ratio) for name, b in BENCHMARKS.items()}
    assert (guidance["geneval"], guidance["oneig"], guidance["imgedit"]) == ((2.5, 2.0), (2.0, 1.0), (2.0, 2.0))
    assert {b.drawing.temperature for name, b in BENCHMARKS.items() if name != "shapes"} == {0.1}


def test_dpg_comes_as_a_folder_or_as_a_table_of_questions(tmp_path):
    folder = read_benchmark("dpg", str(published("dpg", tmp_path)))
    assert {record.metadata["id"]: record.prompt for record in folder} == DPG
    asked = ((1, "0", "Is there one?"), (2, '"0, 1"', "Is it red?"))
    rows = [f'{key},"{text}",{n},{after},"{said}"\n' for key, text in DPG.items() for n, after, said in asked]
    head = "item_id,text,proposition_id,dependency,question_natural_language\n"
    (tmp_path / "dpg_bench.csv").write_text(head + "".join(rows))
    table = read_benchmark("dpg", str(tmp_path / "dpg_bench.csv"))
    assert {record.metadata["id"]: record.prompt for record in table} == DPG
    assert "text" not in table[0].metadata  # which says elsewhere what is to be written
    for record in table:
        first, second = questions_of(record.metadata)
        assert (first.text, first.after, second.text, second.after) == ("Is there one?", (), "Is it red?", ("1",))
    assert not any(questions_of(record.metadata) for record in folder)


def test_shapes_are_the_held_out_captions_under_their_own_names():
    records = read_benchmark("shapes", str(SHAPES_PROMPTS), limit=2)
    assert [record.id for record in records] == ["held_out-00000", "held_out-00001"]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("geneval", {"include": []}, "the field 'prompt' (or 'instruction') is missing"),
        ("geneval", {"prompt": "a", "meta": {"input_image": "a.png"}}, "the image '"),
        ("imgedit", {"idx": 0, "prompt": "make it red", "meta": {}}, "it has no picture to edit, and imgedit edits"),
        ("oneig", {"prompt": "a face", "category": "Portrait"}, "have none of the category Text_Rendering"),
    ],
)
def test_prompts_of_another_kind_are_refused(name, line, said, tmp_path):
    with pytest.raises(UserError) as refused:
        read_benchmark(name, str(write_lines(tmp_path / "prompts.jsonl", [line])))
    assert said in str(refused.value)


# Tables --------------------------------------------------------------------------------------------------------------


def rows_of(records, images, scores, details=None):
    samples = [Sample(record, index) for record in records for index in range(images)]
    values = torch.tensor(scores, dtype=torch.float64)[:, None]
    table = RewardTable(("r",), values, torch.ones_like(values), values.isnan(), {}, details or {})
    return sample_rows(samples, SMALL_DRAWING, table, scores, [None] * len(samples))


def test_genevals_table_is_by_tag_and_its_overall_score_the_mean_over_tags(tmp_path):
    records = read_benchmark("geneval", str(published("geneval", tmp_path)))
    table = score_table(rows_of(records, 2, [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]), records, ("tag",))
    assert {line.name: (line.images, line.scores["r"]) for line in table.by["tag"]} == {
        "colors": (2, 0.5),
        "counting": (4, 0.5),
    }
    assert table.means["tag"].scores == {"r": 0.5}
    assert table.total.scores == {"r": 0.5, "r, any of a prompt's": pytest.approx(2 / 3)}
    uneven = score_table(rows_of(records, 1, [1.0, 0.0, 0.5]), records, ("tag", "nothing"))
    assert uneven.means["tag"].scores["r"] == pytest.approx((1.0 + 0.25) / 2)
    assert uneven.total.scores == {"r": pytest.approx(0.5)}
    assert list(uneven.by) == ["tag"]
    text = uneven.text().splitlines()
    assert text[0].split() == ["tag", "images", "r"]
    assert text[1].split() == ["colors", "1", "1.0000"]


def test_words_are_counted_over_all_images_and_numbers_of_details_averaged(tmp_path):
    records = read_benchmark("longtext", str(published("longtext", tmp_path)))
    said = [{"matched": 3, "words": 3, "edit_distance": 0.0}, {"matched": 0, "words": 1, "edit_distance": 5.0}]
    table = score_table(rows_of(records, 1, [1.0, 0.0], {"r": said}), records, ("category", "length"))
    assert table.total.scores == {"r": 0.5, "r, of all words": 0.75, "r edit_distance": 2.5}
    assert {line.name: line.scores["r"] for line in table.by["length"]} == {"short": 1.0, "long": 0.0}


def test_atoms_are_averaged_by_skill_and_prompts_by_their_number(tmp_path):
    records = read_benchmark("geneval2", str(published("geneval2", tmp_path)))
    said = [{"atoms": [0.5, 1.0], "mean": 0.75}, {"atoms": [0.25], "mean": 0.25}]
    table = score_table(rows_of(records, 1, [0.7, 0.25], {"r": said}), records, ("atom_count",))
    assert {line.name: line.scores["r atoms"] for line in table.by["skills"]} == {
        "attribute": 1.0,
        "count": 0.5,
        "object": 0.25,
    }
    assert [line.name for line in table.by["atom_count"]] == ["3", "5"]
    assert table.total.scores["r mean"] == 0.5


# Layouts -------------------------------------------------------------------------------------------------------------


def drawn(name, tmp_path, images):
    """A folder with the images of a benchmark, each of a colour of its own."""
    records = read_benchmark(name, str(published(name, tmp_path / "prompts")))
    folder = BenchmarkFolder(tmp_path / "out", records)
    folder.claim()
    samples = [Sample(record, index) for record in records for index in range(images)]
    for n, sample in enumerate(samples):
        record = image_record(sample, SMALL_DRAWING, "float32", "w", "m")
        folder.write(sample, Image.new("RGB", (8, 4), (n * 20, 0, 0)), record)
        assert folder.is_drawn(sample, record)
        with pytest.raises(UserError, match="was drawn with weights 'w', not 'v'"):
            folder.is_drawn(sample, {**record, "weights": "v"})
    folder.describe()
    return folder, samples


def test_genevals_scorer_finds_its_files(tmp_path):
    folder, samples = drawn("geneval", tmp_path, 2)
    assert write_official("geneval", folder, samples, "model") is None
    for number, line in enumerate(GENEVAL):
        place = folder.images / f"{number:05d}"
        assert json.loads((place / "metadata.jsonl").read_text()) == line
        assert json.loads((place / "metadata.json").read_text()) == {
            "idx": number,
            "prompt": line["prompt"],
            "meta": line,
        }
        assert sorted(file.name for file in (place / "samples").iterdir()) == ["0000.png", "0001.png"]


def test_oneig_and_dpg_have_squares_of_images(tmp_path):
    for name, path, kind in (("oneig", "text/model/001.webp", "WEBP"), ("dpg", "0.png", "PNG")):
        folder, samples = drawn(name, tmp_path / name, 4)
        place = write_official(name, folder, samples, "model")
        with Image.open(place / path) as grid:
            first = samples.index(
                next(s for s in samples if s.record.metadata["id"] == path.split("/")[-1].split(".")[0])
            )
            reds = [grid.convert("RGB").getpixel((x, y))[0] for y in (1, 5) for x in (1, 9)]
            assert (grid.format, grid.size) == (kind, (16, 8))
        assert reds == [(first + n) * 20 for n in range(4)]
        with pytest.raises(UserError, match="--images-per-prompt is 3"):
            check_official(name, folder, 3)


def test_longtext_imgedit_and_geneval2_have_their_own_names(tmp_path):
    folder, samples = drawn("longtext", tmp_path / "l", 2)
    place = write_official("longtext", folder, samples, "model")
    names = {f"{line['prompt_id']}_{k}.png" for line in LONGTEXT for k in (0, 1)}
    assert {file.name for file in place.iterdir()} == names
    assert (place / "9_1.png").read_bytes() == folder.image(samples[3]).read_bytes()
    folder, samples = drawn("imgedit", tmp_path / "i", 1)
    assert {file.stem for file in write_official("imgedit", folder, samples, "model").iterdir()} == {*EDITS}
    folder, samples = drawn("geneval2", tmp_path / "g", 1)
    paths = json.loads((write_official("geneval2", folder, samples, "model") / "image_paths.json").read_text())
    assert paths == {sample.record.prompt: str(folder.image(sample)) for sample in samples}


def test_names_that_are_paths_or_occur_twice_are_refused(tmp_path):
    for identity, said in (("../up", "cannot be the name of a file"), ("4", "two prompts of longtext have")):
        lines = [{**LONGTEXT[0], "prompt_id": "4"}, {**LONGTEXT[1], "prompt_id": identity}]
        records = read_benchmark("longtext", str(write_lines(tmp_path / "prompts.jsonl", lines)))
        with pytest.raises(UserError, match=said):
            check_official("longtext", BenchmarkFolder(tmp_path, records), 1)


# Runs ----------------------------------------------------------------------------------------------------------------


def images_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.glob("images/*/samples/*.png")}


def test_one_command_draws_scores_compares_and_goes_on(nano_checkpoint, tmp_path, capsys):
    prompts = published("geneval", tmp_path)
    other = shutil.copytree(nano_checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: -t if "output_layer_vistok" in name else t for name, t in weights.items()}, other / "model.safetensors"
    )
    command = ["benchmark", "geneval", "--prompts", str(prompts), *SMALL, "--reward", "compressibility"]

    def run(*words):
        capsys.readouterr()
        status = main([*command, *map(str, words)])
        written = capsys.readouterr()
        return status, written.out + written.err

    out = tmp_path / "out"
    model = ["--model", nano_checkpoint, "--output", out]
    status, said = run(*model, "--dry-run")
    assert (status, out.exists()) == (0, False)
    for part in (
        "images     6, 2 of each prompt, of which 0 are there",
        "size       64×64",
        "counting 2",
        "compressibility",
    ):
        assert part in said

    status, said = run(*model, "--limit", 2)
    assert (status, len(images_of(out))) == (0, 4)
    assert "4 images" in said
    assert "counting" in said
    before = images_of(out)
    (out / "images/00001/samples/0000.png").unlink()
    status, said = run(*model)  # what was lost, and the third prompt
    assert (status, "6 images (3 were there)" in said) == (0, True)
    whole = images_of(out)
    assert len(whole) == 6
    assert {name: whole[name] for name in before} == before
    record = read_record(out / "images/00000/samples/0001.png")
    assert (record["temperature"], record["guidance_scale"], record["height"]) == (0.1, 2.5, 64)

    status, said = run("--model", other, "--output", out)
    assert status == 2
    assert "was drawn with weights" in said
    status, said = run("--model", other, "--output", out, "--dry-run")
    assert (status, "in the way " in said, "was drawn with weights" in said) == (1, True, True)
    assert run(*model, "--dry-run")[0] == run("--model", other, "--output", out, "--dry-run", "--overwrite")[0] == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    status, said = run("--model", other, "--output", tmp_path / "run", "--dry-run")
    assert (status, "in the way " in said, "is the folder of a run" in said) == (1, True, True)
    after = tmp_path / "after"
    status, said = run("--model", other, "--output", after, "--baseline", out)
    assert status == 0
    assert "total by tag" in said
    assert json.loads((after / "comparison.json").read_text())["total"]["samples"] == 6
    rows = read_rows(after / "evaluations/step-000000.parquet")
    assert rows["seed"].to_pylist() == read_rows(out / "evaluations/step-000000.parquet")["seed"].to_pylist()
    assert rows["tag"].to_pylist() == ["colors"] * 2 + ["counting"] * 4
    table = json.loads((after / "table.json").read_text())
    assert (table["benchmark"], table["prompts"], table["total"]["images"]) == ("geneval", 3, 6)
    assert (after / "table.txt").read_text() in said
    page = (after / "report.html").read_text()
    assert "a photo of two cups" in page
    status, said = run("--model", other, "--output", after, "--baseline", out, "--limit", 1)
    assert (status, "is of other prompts or another seed" in said) == (2, True)
    status, said = run("--model", other, "--output", after, "--baseline", out, "--temperature", "0.5")
    assert (status, "was drawn with temperature 0.1, not 0.5; draw both alike" in said) == (2, True)

    status, said = run("--model", other, "--output", out, "--limit", 1, "--images-per-prompt", 1, "--overwrite")
    assert status == 0
    assert list(images_of(out)) == ["images/00000/samples/0000.png"]  # nothing of the other model is left
    assert [folder.name for folder in (out / "images").iterdir()] == ["00000"]


def test_edits_are_laid_out_without_scores_and_scored_beside_their_pictures(nano_checkpoint, tmp_path, capsys):
    prompts = published("imgedit", tmp_path)
    options = [*SMALL[:-2], "--no-scores", "--output", str(tmp_path / "out"), "--limit", "1"]
    command = ["benchmark", "imgedit", "--model", str(nano_checkpoint), "--prompts", str(prompts)]
    assert main([*command, *options]) == 0
    assert [file.name for file in (tmp_path / "out/official").iterdir()] == ["17.png"]
    assert read_rows(tmp_path / "out/evaluations/step-000000.parquet")["total"].to_pylist() == [None]
    assert "for the official scorer" in capsys.readouterr().out
    options.remove("--no-scores")
    assert main([*command, *options, "--reward", "{use: preservation}"]) == 0  # which sees what was edited
    assert "(1 were there)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/table.json").read_text())["total"]["scores"]["preservation"] is not None


def test_a_dry_run_says_all_that_is_missing(tmp_path, capsys):
    command = ["benchmark", "geneval", "--model", "someone/something", "--dry-run", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "missing    geneval needs its prompts; give with --prompts evaluation_metadata.jsonl of" in said
    assert "missing    the model someone/something is not here" in said
    assert "missing    reward geneval: facebook/mask2former" in said
    assert "size       1024×1024 (512×512, upsampled by 2)" in said
    assert main(["benchmark", "shapes", "--model", "assets/uniar-tiny", "--height", "65", "--dry-run"]) == 1
    assert "--height, --width and --upsampling-ratio" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "0"], "--limit is 0"),
        (["--steps", "0"], "--steps is 0; it must be 1 or more"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--reward", "no_such"], "there is no reward 'no_such'"),
        (["--reward", "{use: self_vqa, judge: policy}"], "looks at the model"),
        (["--no-scores", "--judge", "http://localhost:1/v1"], "--no-scores goes with neither"),
        (["--model", "tests/nothing"], "there is no checkpoint folder"),
    ],
)
def test_wrong_words_are_refused_in_a_sentence(words, said, tmp_path, capsys):
    command = ["benchmark", "shapes", "--model", "assets/uniar-tiny", "--output", str(tmp_path / "out"), *words]
    assert main(command) == 2
    written = capsys.readouterr().err
    assert said in written
    assert len(written.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_draw_and_score_what_one_does(nano_checkpoint, tmp_path):
    prompts = published("geneval", tmp_path)
    words = ["benchmark", "geneval", "--model", nano_checkpoint, "--prompts", prompts, *SMALL, "--batch-size", "2"]
    words = [*map(str, words), "--device", "cpu", "--reward", "compressibility", "--reward", "diversity", "--output"]
    assert main([*words, str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rl.cli"]
    done = subprocess.run([*launcher, *words, str(tmp_path / "two")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert images_of(tmp_path / "two") == images_of(tmp_path / "one")
    one, two = (read_rows(tmp_path / name / "evaluations/step-000000.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert (tmp_path / "one/table.json").read_text() == (tmp_path / "two/table.json").read_text()
