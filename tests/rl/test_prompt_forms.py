"""Prompt files in the forms that people have them in: each from a small file of our own, through training's loader and
through the commands' reader."""

import argparse
import gzip
import json

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from support.prompt_rows import asked, lines, questions, refusal, write

from rewards import RewardBatch, RewardSpec, RewardSuite
from rl.data.prompts import load_prompts
from uniar.commands.requests import numbered_as_uniar, read_questions
from uniar.errors import UserError
from uniar.reading import prompt_forms
from uniar.reading.prompt_files import Keys


def test_a_prompt_per_line(tmp_path):
    """As flow_grpo and T2I-CompBench have them; ends of lines that Unicode knows besides stand inside a prompt."""
    text = "\ufeffa green bench and a blue bowl\r\n\r\n  a cat\u2028on a mat \t\na \u0085 sign\n"
    path = write(tmp_path / "val.txt", text)
    prompts = ["a green bench and a blue bowl", "a cat\u2028on a mat", "a \u0085 sign"]
    records = load_prompts(path)
    assert [record.prompt for record in records] == prompts
    assert [record.where for record in records] == [f"{path}, line {number}" for number in (1, 3, 4)]
    assert list(asked(path).values()) == prompts
    for text in ('{"prompt": "a"}', '{ "prompt": "a" }', '["a", "b"]', '[\n  "a"\n]', '{\n "prompt": "a"\n}'):
        assert "line 2: this is JSON, not a prompt; call" in refusal(write(tmp_path / "j.txt", f"a cat\n{text}\n"))
        assert "1.txt: this is JSON, not a prompt; call" in refusal(write(tmp_path / "prompts" / "1.txt", text).parent)
    braces = "{red|blue} cat\n[wide] a dog\n"  # of templates
    assert len(load_prompts(write(tmp_path / "braces.txt", braces))) == 2


def test_a_folder_of_prompts(tmp_path):
    """As DPG-Bench has them."""
    for name, text in {"12": "a wide field\nwith one tree\n", "COCO_3": "two boats"}.items():
        write(tmp_path / "prompts" / f"{name}.txt", text)
    write(tmp_path / "prompts" / "README.md", "not a prompt")
    records = load_prompts(tmp_path / "prompts")
    assert {record.id: record.prompt for record in records} == asked(tmp_path / "prompts")
    assert asked(tmp_path / "prompts") == {"12": "a wide field\nwith one tree", "COCO_3": "two boats"}
    write(tmp_path / "prompts" / "9.txt", " \n")
    assert refusal(tmp_path / "prompts").endswith("prompts/9.txt: the prompt is empty.")


def test_a_table_with_a_column_to_name(tmp_path):
    """As OneIG has its prompts: numbered anew in each category, so that `id` tells none apart."""
    table = (
        "category,id,prompt_en,class\n"
        'Anime,000,"a fox, ""running"",\nat night",None\n'
        "\n"
        "Anime,001,a hill,\n"
        "Text,000,a sign that says 10,None\n"
    )
    path = write(tmp_path / "OneIG.csv", table)
    fox, hill, sign = load_prompts(path)
    assert fox.prompt == 'a fox, "running",\nat night'
    assert fox.metadata == {"id": "000", "category": "Anime", "class": "None"}
    assert hill.metadata == {"id": "001", "category": "Anime"}
    assert [record.where[-6:] for record in (fox, hill, sign)] == ["line 2", "line 5", "line 6"]
    assert list(asked(path).values()) == [fox.prompt, hill.prompt, sign.prompt]
    renamed = write(tmp_path / "other.csv", table.replace("prompt_en", "Prompts"))
    assert (
        "line 2: the field 'prompt' (or 'instruction') is missing; prompt_key can name another: 'category'"
        in refusal(renamed)
    )
    assert load_prompts(renamed, keys=Keys(prompt="Prompts")) == [fox, hill, sign]
    assert list(asked(renamed, "Prompts").values()) == [fox.prompt, hill.prompt, sign.prompt]
    assert "line 2: the field 'Caption' is missing; prompt_key can name another: " in refusal(
        renamed, keys=Keys(prompt="Caption")
    )


def test_a_table_with_tabs_ids_tasks_and_metadata(tmp_path):
    table = 'id\tprompt\ttask\tmetadata\n7\ta "quoted" word\tocr\t"{""text"": ""quoted""}"\n8\tplain\t\t\n'
    first, second = load_prompts(write(tmp_path / "p.tsv", table))
    assert (first.id, first.prompt, first.task, first.metadata) == ("7", 'a "quoted" word', "ocr", {"text": "quoted"})
    assert (second.id, second.task, second.metadata) == ("8", None, {})


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_whatever_parts_the_columns(tmp_path, name, separator):
    """As Excel writes tables where the comma is the decimal sign, with a first line that says so or without."""
    quoted = f'"a{separator} b"'
    table = f"prompt{separator}kind\n{quoted}{separator}x\nc, d; e{separator}y\n"
    if separator in ",;":
        table = table.replace("c, d; e", "c, d" if separator == ";" else "c; d")
    rows = [record.prompt for record in load_prompts(write(tmp_path / name, table))]
    assert rows[0] == f"a{separator} b"
    told = load_prompts(write(tmp_path / name, f"sep={separator}\r\n{table}"))
    assert [record.prompt for record in told] == rows
    assert told[1].where.endswith("line 4")


def test_columns_that_two_signs_could_part(tmp_path):
    table = "prompt,note;kind\na,b;c\n"
    path = write(tmp_path / "p.csv", table)
    assert refusal(path) == f"{path}: ',' and ';' could each part the columns; say which in a first line such as sep=,"
    assert load_prompts(write(path, f"sep=,\n{table}"))[0].metadata == {"note;kind": "b;c"}
    assert [record.prompt for record in load_prompts(write(path, "prompt\na; b\n"))] == ["a; b"]


def test_parquet(tmp_path):
    table = {"prompt": ["a", "b"], "metadata": ['{"n": 1}', None], "tags": [["x"], None], "age": [None, 64]}
    parquet.write_table(pa.table(table), tmp_path / "p.parquet")
    a, b = load_prompts(tmp_path / "p.parquet")
    assert (a.metadata, b.metadata) == ({"n": 1, "tags": ["x"]}, {"age": 64})
    assert list(asked(tmp_path / "p.parquet").values()) == ["a", "b"]
    for cell in (b"PNG", {"bytes": b"PNG", "path": None}):
        parquet.write_table(pa.table({"prompt": ["a"], "image": [cell]}), tmp_path / "q.parquet")
        assert "row 0: 'image' holds bytes, as of a picture; name the folder" in refusal(tmp_path / "q.parquet")


def test_a_folder_of_prompts_loses_none(tmp_path):
    write(tmp_path / "packed" / "a.txt", "a cat")
    with gzip.open(tmp_path / "packed" / "b.TXT.GZ", "wt") as file:
        file.write("a dog")
    assert {record.id: record.prompt for record in load_prompts(tmp_path / "packed")} == {"a": "a cat", "b": "a dog"}
    write(tmp_path / "packed" / "x.jsonl", '{"prompt": "a bird"}\n')
    assert "each a prompt, and other prompt files such as x.jsonl; name one of these" in refusal(tmp_path / "packed")


def test_a_folder_of_rows_is_read_as_its_files_are(tmp_path):
    rows = tmp_path / "rows"
    write(rows / "README.md", "what they are")
    write(rows / "b.csv", "prompt;kind\nc;x\n")
    first = write(rows / "a.jsonl", lines({"prompt": "a"}, {"prompt": "b"}))
    assert [record.prompt for record in load_prompts(rows)] == ["a", "b", "c"]
    assert asked(rows) == {"1": "a", "2": "b", "3": "c"}
    write(first, lines({"prompt": "a"}, {"prompt": 3}))
    assert refusal(rows) == f"{first}, line 2: 'prompt' is 3 (a number), expected a string."
    write(rows / "test.jsonl", lines({"prompt": "held out"}))
    assert "has files of several splits, such as test.jsonl; name the file, or datasets:" in refusal(rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_path": "a.png"},
        {"source_image": "b/a.JPG"},
        {"img": "https://e.org/a"},
        {"input_images": ["a.webp"]},
        {"Image": {"path": "a.png", "bytes": None}},
        {"conditioning-image": "data:image/png;base64,AAAA"},
    ],
)
def test_a_picture_under_another_name_is_not_passed_over(tmp_path, fields):
    (name,) = fields
    path = write(tmp_path / "p.jsonl", lines({"prompt": "a", **fields}))
    assert f"line 1: '{name}' names a picture, and the picture to edit is 'image'" in refusal(path)
    write(path, lines({"prompt": "a", "metadata": fields}, {"prompt": "b", "target_image": "a.png", "image_count": 2}))
    assert [record.image for record in load_prompts(path)] == [None, None]


def test_uniars_own_evaluation_files(tmp_path):
    clauses = [{"class": "dog", "count": 2}]
    meta = {"tag": "counting", "include": clauses, "prompt": "two dogs"}
    rows = [{"idx": 0, "prompt": "two dogs", "meta": meta}, {"idx": 1, "prompt": "a cup", "meta": {"length": "short"}}]
    path = write(tmp_path / "geneval.jsonl", lines(*rows))
    dogs, cup = load_prompts(path)
    assert (dogs.id, dogs.metadata) == ("0", {"tag": "counting", "include": clauses})
    assert (cup.id, cup.metadata) == ("1", {"length": "short"})
    assert asked(path) == {"0": "two dogs", "1": "a cup"}


def test_pictures_to_edit_under_other_names(tmp_path):
    Image.new("RGB", (8, 4), "blue").save(tmp_path / "a.png")
    nested = {"idx": 0, "prompt": "make it red", "meta": {"instruction": "make it red", "input_image": "a.png"}}
    flat = {"prompt": "make it red", "input_image": "a.png"}
    named = {"prompt": "make it red", "source": "a.png"}
    for row, keys in ((nested, Keys()), (flat, Keys()), (named, Keys(image="source"))):
        (record,) = load_prompts(write(tmp_path / "edits.jsonl", lines(row)), keys=keys)
        assert record.load_image().getpixel((0, 0)) == (0, 0, 255)
        arguments = argparse.Namespace(
            prompt=None, prompts=tmp_path / "edits.jsonl", prompt_key=None, image_key=keys.image, image_root=tmp_path
        )
        assert [question.pictures for question in read_questions(arguments, ())] == [(tmp_path / "a.png",)]
    write(tmp_path / "edits.jsonl", lines(named, {"prompt": "make it red"}))
    assert "line 2: the field 'source' (image_key) is missing." in refusal(
        tmp_path / "edits.jsonl", keys=Keys(image="source")
    )


def test_arrays_of_objects_and_of_strings(tmp_path):
    """T2I-R1's training data are an array with `task_type`, HPS's prompts an array of strings."""
    rows = [{"prompt": "a red cube", "task_type": "attr", "nouns": ["cube"]}, {"prompt": "six hats", "task_type": "n"}]
    path = write(tmp_path / "data.json", json.dumps(rows, indent=2))
    cube, hats = load_prompts(path)
    assert (cube.task, cube.metadata, hats.task) == ("attr", {"nouns": ["cube"]}, "n")
    assert (cube.where, hats.where) == (f"{path}, line 2", f"{path}, line 9")
    strings = write(tmp_path / "anime.json", '["a cat",\n"a \\u2028dog"]')
    assert [record.prompt for record in load_prompts(strings)] == ["a cat", "a \u2028dog"]
    assert list(asked(strings).values()) == ["a cat", "a \u2028dog"]
    assert len(load_prompts(write(tmp_path / "lines.json", lines({"prompt": "a"}, {"prompt": "b"})))) == 2


def test_entries_of_one_line_are_told_apart_by_their_place(tmp_path):
    """As json.dump writes an array."""
    strings = write(tmp_path / "one.json", ["a red circle", "a blue square", "a green triangle"])
    assert asked(strings) == {"1": "a red circle", "2": "a blue square", "3": "a green triangle"}
    assert load_prompts(strings)[2].where == f"{strings}, entry 3"
    some = write(tmp_path / "some.json", '\n\n[{"prompt": "a"},\n\n{"prompt": "b"}, "c"]')
    assert asked(some) == {"1": "a", "2": "b", "3": "c"}
    lines_differ = write(tmp_path / "differ.json", '\n\n[{"prompt": "a",\n"task": "t"},\n\n"b"]')
    assert asked(lines_differ) == {"3": "a", "6": "b"}
    for rows in ([{"prompt": "a"}, {"prompt": "b", "id": 1}], [{"prompt": "a", "id": 7}, {"prompt": "b", "idx": 7}]):
        with pytest.raises(UserError, match=r"entry 2: its name '[17]' is already that of entry 1\."):
            asked(write(tmp_path / "clash.json", rows))
    wrong = write(tmp_path / "wrong.json", [{"prompt": ""}, "a", {"prompt": " "}, ""])
    assert refusal(wrong).endswith("entry 1: the prompt is empty; 2 more are wrong: 3, 4.")


def test_idx_of_one_line_may_not_repeat_in_the_layout_of_uniar(tmp_path):
    rows = [{"prompt": "a", "idx": 3, "id": "x"}, {"prompt": "b", "idx": 3, "id": "y"}]
    with pytest.raises(UserError, match=r"entry 2: its idx 3 is already that of .*entry 1"):
        numbered_as_uniar(questions(write(tmp_path / "idx.json", rows)))


def test_one_object_over_several_lines(tmp_path):
    path = write(tmp_path / "one.json", "\n" + json.dumps({"prompt": "a cat", "metadata": {"n": [1]}}, indent=2))
    (record,) = load_prompts(path)
    assert (record.prompt, record.metadata, record.where) == ("a cat", {"n": [1]}, f"{path}, line 2")
    nested = write(tmp_path / "nested.json", json.dumps({"prompts": ["a", "b"]}, indent=2))
    assert "line 1: the field 'prompt'" in refusal(nested) or "unknown field 'prompts'" in refusal(nested)


def test_ids_that_repeat_in_a_table_are_metadata(tmp_path):
    for name in ("id", "idx"):
        table = write(tmp_path / "p.csv", f'prompt,{name},metadata\na,0,"{{""n"": 1}}"\nb,0,null\n')
        assert [record.metadata for record in load_prompts(table)] == [{name: "0", "n": 1}, {name: "0"}]
        assert list(asked(table).values()) == ["a", "b"]
        for cell, words in {
            "[1]": "line 2: 'metadata' is [1] (a list), expected an object",
            "3": "line 2: 'metadata' is 3 (a number), expected an object",
            f'"{{""{name}"": 5}}"': f"line 2: '{name}' is given both as a column and in metadata",
        }.items():
            assert words in refusal(write(tmp_path / "p.csv", f"prompt,{name},metadata\na,0,{cell}\nb,0,\n"))


def test_folders_and_line_ends_of_other_systems(tmp_path):
    for name, content in {"._a.txt": b"\0\5\x16\7\xff", "a.txt": "a cat", "b.TXT": "a dog"}.items():
        write(tmp_path / "prompts" / name, content)
    assert asked(tmp_path / "prompts") == {"a": "a cat", "b": "a dog"}
    assert asked(write(tmp_path / "old.txt", "a cat\ra dog\r\ra cow")) == {"1": "a cat", "2": "a dog", "4": "a cow"}
    assert asked(write(tmp_path / "old.jsonl", '{"prompt": "a"}\r{"prompt": "b"}\r')) == {"1": "a", "2": "b"}


def test_a_packed_file_is_not_unpacked_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_forms, "MOST_UNPACKED", 1000)
    packed = [write(tmp_path / f"{size}.txt.gz", gzip.compress(b"a" * size)) for size in (1000, 1001, 10**6)]
    assert len(load_prompts(packed[0])) == 1
    for path in packed[1:]:
        assert "holds more than 1000 bytes when unpacked" in refusal(path)


def test_geneval_2_and_other_fields_are_metadata(tmp_path):
    row = {"prompt": "3 white cups", "atom_count": 3, "vqa_list": [["How many cups?", "3"]], "skills": ["count"]}
    (record,) = load_prompts(write(tmp_path / "geneval2_data.jsonl", lines(row)))
    assert record.metadata == {name: value for name, value in row.items() if name != "prompt"}


@pytest.mark.parametrize(
    "name", ["p.jsonl.gz", "p.txt.gz", "p.csv.gz", "p.JSONL", "p.ndjson", "p.jsonlines", "p.ndjson.gz", "p"]
)
def test_packed_files_and_other_spellings(tmp_path, name):
    content = {"p.txt.gz": "a cat\n", "p.csv.gz": "prompt\na cat\n"}.get(name, '{"prompt": "a cat"}\n').encode()
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert [record.prompt for record in load_prompts(path)] == ["a cat"]


def test_a_byte_order_mark_windows_line_ends_and_separators_inside_strings(tmp_path):
    content = '\ufeff{"prompt": "a\u2028b\u2029c\u0085d"}\r\n\r\n{"prompt": "e"}\r\n'
    records = load_prompts(write(tmp_path / "p.jsonl", content))
    assert [record.prompt for record in records] == ["a\u2028b\u2029c\u0085d", "e"]
    assert records[1].where.endswith("line 3")


def test_answers_and_sizes(tmp_path):
    rows = [
        {"prompt": "what colour is it?", "answer": "red"},
        {"prompt": "how many?", "answer": [3, "three", 3.0], "height": None},
        {"prompt": "a red square", "height": 64, "width": 96},
        {"prompt": "a red square"},
        {"prompt": "a red square", "height": 96, "width": 64},
        {"prompt": "x", "metadata": {"height": 1.8, "answer": {"any": "kind"}}, "answers": ["theirs"]},
    ]
    records = load_prompts(write(tmp_path / "p.jsonl", lines(*rows)))
    assert [record.size for record in records] == [None, None, (64, 96), None, (96, 64), None]
    assert [record.metadata for record in records[:3]] == [{"answer": "red"}, {"answer": [3, "three", 3.0]}, {}]
    assert records[5].metadata == {"height": 1.8, "answer": {"any": "kind"}, "answers": ["theirs"]}
    assert len({record.id for record in records}) == 6
    assert records[3].id == load_prompts(write(tmp_path / "q.jsonl", lines(rows[3])))[0].id
    table = write(tmp_path / "p.csv", "prompt,answer,height,width\nx,3,64,96\ny,,,\n")
    first, second = load_prompts(table)
    assert (first.metadata, first.size, second.size) == ({"answer": "3"}, (64, 96), None)
    suite = RewardSuite([RewardSpec("exact_match")])
    batch = RewardBatch(["how many?"] * 2, [None] * 2, metadata=[records[1].metadata] * 2, texts=[["Three."], ["4"]])
    assert suite.score(batch).values.flatten().tolist() == [1.0, 0.0]
