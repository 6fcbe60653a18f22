"""Prompt files, mixes and datasets: what loads, stable ids, and what is refused in which words."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from rl.data.prompts import PromptRecord, load_prompts
from uniar.errors import UserError

ROOT = Path(__file__).parents[2]


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ids(records: list[PromptRecord]) -> list[str]:
    return [record.id for record in records]


def numbered(count: int) -> list[dict]:
    return [{"prompt": f"{n} apples", "task": "count"} for n in range(count)]


# JSONL ---------------------------------------------------------------------------------------------------------------


def test_jsonl_fields(tmp_path):
    Image.new("RGBA", (4, 2), (255, 0, 0, 255)).save(tmp_path / "cat.png")
    path = write_lines(
        tmp_path / "prompts.jsonl",
        [
            {"prompt": "un café", "task": "ocr", "metadata": {"text": "café"}},
            "",
            {"prompt": "make it blue", "image": "cat.png", "id": 7},
            {"prompt": "two dogs", "tag": "counting", "include": [{"class": "dog", "count": 2}], "task": None},
        ],
    )
    first, edit, extra = load_prompts(path)
    assert first == PromptRecord("un café", "ocr", {"text": "café"}, None, first.id)
    assert edit == PromptRecord("make it blue", None, {}, str(tmp_path / "cat.png"), "7")
    assert edit.load_image().getpixel((3, 1)) == (255, 0, 0)
    assert first.load_image() is None
    assert extra.metadata == {"tag": "counting", "include": [{"class": "dog", "count": 2}]}
    assert extra.task is None


def test_images_start_from_image_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "pictures" / "a.png")
    path = write_lines(tmp_path / "lists" / "p.jsonl", [{"prompt": "x", "image": "a.png"}])
    (record,) = load_prompts(path, image_root=tmp_path / "pictures")
    assert record.image == str(tmp_path / "pictures" / "a.png")
    with pytest.raises(UserError, match=r"p.jsonl, line 1: the image '.*lists/a.png' does not exist"):
        load_prompts(path)


def test_broken_images_are_found_at_load_and_named_when_they_break_later(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "x"}, {"prompt": "x", "image": "a.png"}])
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"p.jsonl, line 2: the image '.*a.png' is not a whole picture in a format"):
        load_prompts(path)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    _, record = load_prompts(path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"the image '.*a.png' of prompt \w+ does not exist"):
        record.load_image()


def test_ids_come_from_content_not_from_order(tmp_path):
    rows = [*numbered(6), numbered(6)[2], {"prompt": "2 apples", "task": "other"}]
    there = load_prompts(write_lines(tmp_path / "a.jsonl", rows))
    back = load_prompts(write_lines(tmp_path / "b.jsonl", rows[::-1]))
    assert len(set(ids(there))) == 8
    assert set(ids(there)) == set(ids(back))
    assert {(r.id.split("#")[0], r.prompt, r.task) for r in there} == {
        (r.id.split("#")[0], r.prompt, r.task) for r in back
    }
    assert there[6].id == there[2].id + "#1"
    # Pinned: a change of these would change the noise, and so the samples, of everybody's runs.
    assert there[0].id == "f6c125bccbaaacdb"


def test_ids_ignore_key_order_line_numbers_and_spelling_of_the_field(tmp_path):
    a = {"instruction": "x", "number": 0, "task": "t", "metadata": {"a": 1, "b": 2}}
    b = {"metadata": {"b": 2, "a": 1}, "task": "t", "number": 9, "prompt": "x"}
    one, other = (load_prompts(write_lines(tmp_path / f"{i}.jsonl", [row])) for i, row in enumerate((a, b)))
    assert one == other


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x"', "line 2: not valid JSON: Expecting ',' delimiter at column 15."),
        ("[1, 2]", "line 2: found [1, 2] (a list), expected an object."),
        ('"x"', 'line 2: found "x" (a string), expected an object'),
        (
            '{"task": "ocr"}',
            "line 2: the field 'prompt' (or 'instruction') is missing; prompt_key can name another: 'task'",
        ),
        ('{"promt": "x"}', "line 2: unknown field 'promt'. Did you mean 'prompt'?"),
        ('{"messages": [{"role": "user"}]}', "'prompt' (or 'instruction') is missing; found: 'messages'"),
        ('{"prompt": null}', "line 2: the field 'prompt' (or 'instruction') is missing."),
        ('{"prompt": 3}', "line 2: 'prompt' is 3 (a number), expected a string."),
        ('{"instruction": ["x"]}', "line 2: 'instruction' is [\"x\"] (a list), expected a string."),
        ('{"prompt": "  "}', "line 2: the prompt is empty."),
        ('{"prompt": "x", "instruction": "y"}', "line 2: 'prompt' and 'instruction' are two names of one field"),
        ('{"prompt": "x", "task": 1}', "line 2: 'task' is 1 (a number), expected a string."),
        ('{"prompt": "x", "metadata": "red"}', "line 2: 'metadata' is \"red\" (a string), expected an object."),
        ('{"prompt": "x", "metdata": {}}', "line 2: unknown field 'metdata'. Did you mean 'metadata'?"),
        ('{"prompt": "x", "tag": 1, "metadata": {"tag": 2}}', "'tag' is given both as a field and in metadata."),
        ('{"prompt": "x", "image": 5}', "line 2: 'image' is 5 (a number), expected the path of a picture."),
        ('{"prompt": "x", "image": "gone.png"}', "gone.png' does not exist."),
        ('{"prompt": "x", "id": true}', "line 2: 'id' is true (true or false), expected a string or a whole number."),
        (
            '{"prompt": "x", "answer": {"is": 1}}',
            "'answer' is {\"is\": 1} (an object), expected a text, a number, or a",
        ),
        ('{"prompt": "x", "answer": true}', "line 2: 'answer' is true (true or false), expected a text, a number"),
        ('{"prompt": "x", "answer": ["a", [1]]}', "line 2: 'answer' lists [1] (a list), expected a text, a number"),
        ('{"prompt": "x", "answer": []}', "line 2: 'answer' is an empty list; leave the field out where nothing is"),
        ('{"prompt": "x", "anwser": "a"}', "line 2: unknown field 'anwser'. Did you mean 'answer'?"),
        ('{"prompt": "x", "answer": 1, "metadata": {"answer": 2}}', "'answer' is given both as a field and in metadat"),
        ('{"prompt": "x", "height": 64}', "line 2: 'height' is given without 'width'; a size needs both, and what rew"),
        ('{"prompt": "x", "width": 64}', "line 2: 'width' is given without 'height'; a size needs both"),
        ('{"prompt": "x", "height": 0, "width": 64}', "line 2: 'height' is 0, expected a whole number of pixels abo"),
        ('{"prompt": "x", "height": 64, "width": "-3"}', "line 2: 'width' is '-3', expected a whole number of pixels"),
        ('{"prompt": "x", "height": 6.5, "width": 6}', "line 2: 'height' is 6.5 (a number), expected a whole number"),
        ('{"prompt": "x", "id": "a"}', "line 2: the id 'a' was given in line 1."),
    ],
)
def test_bad_lines(tmp_path, line, words):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "good", "id": "a"}, line])
    with pytest.raises(UserError) as error:
        load_prompts(path)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_sources(tmp_path):
    empty = write_lines(tmp_path / "empty.jsonl", ["", "  "])
    with pytest.raises(UserError, match=r"empty.jsonl' are empty; at least one prompt is needed"):
        load_prompts(empty)
    with pytest.raises(UserError, match=r"the prompt file '.*gone.jsonl' does not exist"):
        load_prompts(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"[Tt]he prompt mix '.*gone.yaml' does not exist"):
        load_prompts(tmp_path / "gone.yaml")
    with pytest.raises(
        UserError, match=r"p.xml' are not in a form that is read: a .jsonl, .ndjson, .jsonlines, .json, .txt, .csv"
    ):
        load_prompts(tmp_path / "p.xml")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "café"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl' is not text in UTF-8"):
        load_prompts(tmp_path / "latin.jsonl")


# Mixes ---------------------------------------------------------------------------------------------------------------


def write_mix(path: Path, *entries: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("datasets:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries), encoding="utf-8")
    return path


def test_mix_samples_the_same_part_whatever_the_order(tmp_path):
    rows = numbered(20)
    write_lines(tmp_path / "a.jsonl", rows)
    write_lines(tmp_path / "b.jsonl", rows[::-1])
    write_lines(tmp_path / "c.jsonl", [{"prompt": "a boat"}])
    mix = write_mix(tmp_path / "m.yaml", "json_path: a.jsonl, sampled_ratio: 0.25", "json_path: c.jsonl")
    turned = write_mix(tmp_path / "t.yaml", "json_path: c.jsonl", "json_path: b.jsonl, sampled_ratio: 0.25")
    records = load_prompts(mix)
    assert len(records) == 6
    assert [r.prompt for r in records[:-1]] == [r["prompt"] for r in rows if r["prompt"] in {x.prompt for x in records}]
    assert set(ids(records)) == set(ids(load_prompts(turned)))
    assert set(ids(records)) != set(ids(load_prompts(mix, seed=1)))
    assert ids(records) == ids(load_prompts(mix))
    # What a part holds keeps the ids that it has in the whole file.
    assert set(ids(records[:-1])) < set(ids(load_prompts(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("ratio", "count"),
    [("0.01", 1), ("0.5", 2), ("1", 4), ("1.0", 4), ("2", 2), ("3.0", 3), ("4", 4), ("10000", 4), ("1e12", 4)],
)
def test_sampled_ratio_is_a_part_or_a_number_of_rows(tmp_path, ratio, count):
    """UniAR's own mixes have 10000: so many rows, or all where the file has fewer."""
    write_lines(tmp_path / "a.jsonl", numbered(4))
    mix = write_mix(tmp_path / "m.yaml", f"json_path: a.jsonl, sampled_ratio: {ratio}")
    records = load_prompts(mix)
    assert len({record.prompt for record in records}) == len(records) == count
    assert records == load_prompts(mix)


def test_rows_of_a_mix_are_the_same_whatever_their_order_and_grow_with_their_number(tmp_path):
    write_lines(tmp_path / "a.jsonl", numbered(20))
    write_lines(tmp_path / "b.jsonl", numbered(20)[::-1])

    def taken(name: str, ratio: str, seed: int = 0) -> set[str]:
        mix = write_mix(tmp_path / "m.yaml", f"json_path: {name}.jsonl, sampled_ratio: {ratio}")
        return set(ids(load_prompts(mix, seed=seed)))

    assert taken("a", "7") == taken("b", "7") != taken("a", "7", seed=1)
    assert taken("a", "0.25") == taken("a", "5") < taken("a", "7")


def test_a_file_counts_twice_where_it_is_listed_twice(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*numbered(2), {"prompt": "x", "id": 1}])
    mix = write_mix(tmp_path / "m.yaml", "name: first, json_path: a.jsonl", "name: again, json_path: a.jsonl")
    records = load_prompts(mix)
    assert len(set(ids(records))) == len(records) == 6
    assert ids(records)[2::3] == ["first/1", "again/1"]


def test_own_id_that_meets_the_name_of_a_copy(tmp_path):
    (record,) = load_prompts(write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}]))
    rows = [{"prompt": "x"}, {"prompt": "x"}, {"prompt": "y", "id": f"{record.id}#1"}]
    with pytest.raises(UserError, match="have an id that ends like the number of a copy"):
        load_prompts(write_lines(tmp_path / "a.jsonl", rows))


def test_mix_finds_its_files(tmp_path, monkeypatch):
    """As UniAR publishes them: json_path starts from the repository root, wherever one is."""
    write_lines(
        tmp_path / "repo" / "data" / "rl" / "a.jsonl", [{"instruction": "here", "number": 0, "task": "general"}]
    )
    mix = write_mix(
        tmp_path / "repo" / "data" / "rl" / "m.yaml", "name: a, json_path: data/rl/a.jsonl, sampled_ratio: 1"
    )
    assert [r.prompt for r in load_prompts(mix)] == ["here"]  # a folder above the mix
    write_lines(tmp_path / "elsewhere" / "data" / "rl" / "a.jsonl", [{"prompt": "there"}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [r.prompt for r in load_prompts(mix)] == ["there"]  # the current folder wins
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("a.jsonl", "m.yaml"):
        (tmp_path / "repo" / "data" / "rl" / name).rename(moved / name)
    monkeypatch.chdir(tmp_path)
    assert [r.prompt for r in load_prompts(moved / "m.yaml")] == ["here"]  # beside the mix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompts: []\n", "needs the key 'datasets' with a list of files."),
        ("- a.jsonl\n", "needs the key 'datasets' with a list of files."),
        ("datasets: []\n", "are empty; at least one prompt is needed."),
        ("datasets: [{json_path: a.jsonl}]\nseed: 1\n", "line 2: unknown key 'seed'."),
        ("datasets:\n- name: a\n", "line 2: datasets.0.json_path is missing; expected a string."),
        ("datasets:\n- json_path: gone.jsonl\n", "line 2: the file 'gone.jsonl' of the mix does not exist."),
        ("datasets:\n- json_path: a.jsonl\n  sampled_ratio: 0\n", "line 3: datasets.0.sampled_ratio is 0, expected"),
        ("datasets:\n- json_path: a.jsonl\n  sampled_ratio: -1\n", "sampled_ratio is -1, expected a number > 0."),
        (
            "datasets:\n- json_path: a.jsonl\n  sampled_ratio: half\n",
            "sampled_ratio is 'half' (a string), expected a number",
        ),
        (
            "datasets:\n- json_path: a.jsonl\n  sampled_ratio: 2.5\n",
            "line 2: sampled_ratio is 2.5; expected a part of the file, up to 1, or a whole number of its rows.",
        ),
        ("datasets:\n- json_path: other.yaml\n", "line 2: the prompts '{folder}/other.yaml' are not in a form that is"),
        ("datasets:\n- json_path: a.jsonl\n  sample_ratio: 1\n", "Did you mean 'sampled_ratio'?"),
        ("datasets:\n- json_path: a.jsonl\n- json_path: a.jsonl\n", "line 3: the name 'a' was given to the file of"),
        ("datasets:\n- json_path: empty.jsonl\n", "line 2: the prompts '{folder}/empty.jsonl' are empty; at least one"),
        ("datasets:\n- json_path: broken.jsonl\n", "broken.jsonl, line 1: not valid JSON"),
        ("datasets: [a.jsonl]\n", "line 1: datasets.0 is 'a.jsonl' (a string), expected a mapping of settings."),
        ("datasets: {\n", "not valid YAML"),
    ],
)
def test_bad_mixes(tmp_path, text, words):
    write_lines(tmp_path / "a.jsonl", numbered(2))
    write_lines(tmp_path / "empty.jsonl", [""])
    write_lines(tmp_path / "broken.jsonl", ["{"])
    (tmp_path / "other.yaml").write_text("datasets: []")
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_prompts(tmp_path / "m.yaml")
    assert words.replace("{folder}", str(tmp_path)) in str(error.value)
    assert str(tmp_path) in str(error.value)


# Datasets ------------------------------------------------------------------------------------------------------------


def test_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {
        "prompt": ["draw", "edit"],
        "task": ["general", None],
        "metadata": ['{"text": "a"}', None],
        "image": [None, Image.new("RGB", (3, 2), "blue")],
        "level": [1, 2],
    }
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "task": datasets.Value("string"), "metadata": datasets.Value("string")}
        | {"image": datasets.Image(), "level": datasets.Value("int64")}
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "saved")

    draw, edit = load_prompts(f"datasets:{tmp_path / 'saved'}")
    assert (draw.prompt, draw.task, draw.metadata, draw.image) == ("draw", "general", {"text": "a", "level": 1}, None)
    assert (edit.task, edit.metadata) == (None, {"level": 2})
    assert edit.load_image().size == (3, 2)
    assert edit.load_image().getpixel((0, 0)) == (0, 0, 255)
    (same,) = load_prompts(f"datasets:{tmp_path / 'saved'}:test")
    assert same.id == edit.id  # by content: the row is another
    assert ids(load_prompts(tmp_path / "saved")) == [draw.id, edit.id]
    with pytest.raises(UserError, match=r"has no split 'dev'; it has train, test"):
        load_prompts(f"datasets:{tmp_path / 'saved'}:dev")
    with pytest.raises(UserError, match=r"the dataset '.*gone' with split 'train' cannot be loaded"):
        load_prompts(f"datasets:{tmp_path / 'gone'}")

    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"other', row 0: the field 'prompt' \(or 'instruction'\) is missing"):
        load_prompts(f"datasets:{tmp_path / 'other'}")
    datasets.Dataset.from_dict({"prompt": ["x"], "metadata": ["{"]}).save_to_disk(tmp_path / "broken")
    with pytest.raises(UserError, match=r"broken', row 0: metadata: not valid JSON"):
        load_prompts(f"datasets:{tmp_path / 'broken'}")


def test_a_mix_names_datasets_folders_and_tables(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {
        split: datasets.Dataset.from_dict({"prompt": [f"{split} {n}" for n in range(4)]}) for split in ("train", "b")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data" / "saved")
    (tmp_path / "data" / "texts").mkdir()
    (tmp_path / "data" / "texts" / "7.txt").write_text("a field")
    (tmp_path / "data" / "table.csv").write_text("caption,id\na hill,3\n")
    mix = write_mix(
        tmp_path / "data" / "m.yaml",
        "json_path: 'datasets:saved:b', sampled_ratio: 2",
        "name: all, json_path: 'datasets:data/saved'",
        "json_path: texts",
        "json_path: table.csv, prompt_key: caption",
    )
    monkeypatch.chdir(tmp_path)
    records = load_prompts(mix)
    assert sorted(record.prompt[0] for record in records) == ["a", "a", "b", "b", "t", "t", "t", "t"]
    assert ids(records)[-2:] == ["texts/7", "table/3"]
    assert "data/saved:b', row " in records[0].where
    gone = write_mix(tmp_path / "gone.yaml", "json_path: 'datasets:no/such:train'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"gone.yaml, line 2: the dataset 'no/such' with split 'train' cannot be loaded"
    ):
        load_prompts(gone)


# Real files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "prompts").glob("*.jsonl")), ids=lambda path: path.stem)
def test_shipped_prompts_load(path):
    records = load_prompts(path)
    assert len({record.prompt for record in records}) == len(records)
    assert all(record.task for record in records)


def test_held_out_colours_are_not_trained_on():
    train, held_out = (
        load_prompts(ROOT / "configs" / "prompts" / f"colours{tail}.jsonl") for tail in ("", "_held_out")
    )
    assert not {record.prompt for record in train} & {record.prompt for record in held_out}


@pytest.mark.skipif("UNIAR_RL_DEMO" not in os.environ, reason="UNIAR_RL_DEMO does not name UniAR's rl_demo folder")
def test_uniar_demo_files_load_unchanged():
    records = load_prompts(Path(os.environ["UNIAR_RL_DEMO"]) / "demo_mix.yaml")
    assert {record.task for record in records} == {"geneval", "ocr", "general"}
    assert len(set(ids(records))) == len(records)
    assert all("include" in record.metadata for record in records if record.task == "geneval")
