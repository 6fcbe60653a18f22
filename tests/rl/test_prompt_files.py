"""Prompt files in the forms that people have them in: each from a small file of our own, through training's loader and
through the commands' reader."""

import argparse
import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from rl.data.prompts import check_drawable, load_prompts
from uniar.commands.requests import Question, numbered_as_uniar, read_questions
from uniar.errors import UserError
from uniar.reading import prompt_files
from uniar.reading.prompt_files import Keys
from uniar.reading.prompt_text import RESERVED, reserved_tokens


def write(path: Path, content: str | bytes | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def questions(path: Path, prompt_key: str | None = None) -> list[Question]:
    """As `uniar-rl generate --prompts` reads them."""
    arguments = argparse.Namespace(prompt=None, prompts=path, prompt_key=prompt_key, image_key=None, image_root=None)
    return read_questions(arguments, ())


def asked(path: Path, prompt_key: str | None = None) -> dict[str, str]:
    """Names and prompts of `questions`."""
    return {question.name: question.prompt for question in questions(path, prompt_key)}


def refusal(path: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        load_prompts(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Forms ---------------------------------------------------------------------------------------------------------------


def test_a_prompt_per_line(tmp_path):
    """As flow_grpo and T2I-CompBench have them; ends of lines that Unicode knows besides stand inside a prompt."""
    text = "\ufeffa green bench and a blue bowl\r\n\r\n  a cat\u2028on a mat \t\na \u0085 sign\n"
    path = write(tmp_path / "val.txt", text)
    prompts = ["a green bench and a blue bowl", "a cat\u2028on a mat", "a \u0085 sign"]
    records = load_prompts(path)
    assert [record.prompt for record in records] == prompts
    assert [record.where for record in records] == [f"{path}, line {number}" for number in (1, 3, 4)]
    assert list(asked(path).values()) == prompts
    assert "line 1: this is JSON, not a prompt per line" in refusal(write(tmp_path / "j.txt", '{"prompt": "a"}\n'))


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
    assert "line 2: the field 'prompt' (or 'instruction') is missing; there are 'category'" in refusal(renamed)
    assert load_prompts(renamed, keys=Keys(prompt="Prompts")) == [fox, hill, sign]
    assert list(asked(renamed, "Prompts").values()) == [fox.prompt, hill.prompt, sign.prompt]
    assert "line 2: the field 'Caption' is missing; there are " in refusal(renamed, keys=Keys(prompt="Caption"))


def test_a_table_with_tabs_ids_tasks_and_metadata(tmp_path):
    table = 'id\tprompt\ttask\tmetadata\n7\ta "quoted" word\tocr\t"{""text"": ""quoted""}"\n8\tplain\t\t\n'
    first, second = load_prompts(write(tmp_path / "p.tsv", table))
    assert (first.id, first.prompt, first.task, first.metadata) == ("7", 'a "quoted" word', "ocr", {"text": "quoted"})
    assert (second.id, second.task, second.metadata) == ("8", None, {})


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
    monkeypatch.setattr(prompt_files, "MOST_UNPACKED", 1000)
    packed = [write(tmp_path / f"{size}.txt.gz", gzip.compress(b"a" * size)) for size in (1000, 1001, 10**6)]
    assert len(load_prompts(packed[0])) == 1
    for path in packed[1:]:
        assert "holds more than 1000 bytes when unpacked" in refusal(path)


def test_geneval_2_and_other_fields_are_metadata(tmp_path):
    row = {"prompt": "3 white cups", "atom_count": 3, "vqa_list": [["How many cups?", "3"]], "skills": ["count"]}
    (record,) = load_prompts(write(tmp_path / "geneval2_data.jsonl", lines(row)))
    assert record.metadata == {name: value for name, value in row.items() if name != "prompt"}


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.txt.gz", "p.csv.gz", "p.JSONL", "p"])
def test_packed_files_and_other_spellings(tmp_path, name):
    content = {"p.txt.gz": "a cat\n", "p.csv.gz": "prompt\na cat\n"}.get(name, '{"prompt": "a cat"}\n').encode()
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert [record.prompt for record in load_prompts(path)] == ["a cat"]


def test_a_byte_order_mark_windows_line_ends_and_separators_inside_strings(tmp_path):
    content = '\ufeff{"prompt": "a\u2028b\u2029c\u0085d"}\r\n\r\n{"prompt": "e"}\r\n'
    records = load_prompts(write(tmp_path / "p.jsonl", content))
    assert [record.prompt for record in records] == ["a\u2028b\u2029c\u0085d", "e"]
    assert records[1].where.endswith("line 3")


# Refusals ------------------------------------------------------------------------------------------------------------

REFUSED = {
    "nul": ("p.jsonl", '{"prompt": "a\\u0000b"}', "line 1: the prompt contains a NUL character; leave it out."),
    "half a character": ("p.jsonl", '{"prompt": "\\ud83d"}', "line 1: an escape \\uD800 to \\uDFFF stands alone"),
    "half in an array": ("p.json", '["a",\n"\\udfff"]', "line 2: an escape \\uD800 to \\uDFFF stands alone"),
    "token": ("p.jsonl", '{"prompt": "a <|vision_start|>"}', "line 1: the prompt contains <|vision_start|>, which has"),
    "token in text": ("p.txt", "a\n<|im_end|>\n", "line 2: the prompt contains <|im_end|>"),
    "key twice": (
        "p.jsonl",
        '{"prompt": "a", "prompt": "b"}',
        "line 1: not valid JSON: the key 'prompt' is given twice",
    ),
    "key twice in an array": ("p.json", '[\n{"a": 1, "a": 2}]', "line 2: not valid JSON: the key 'a' is given twice"),
    "empty path": ("p.jsonl", '{"prompt": "a", "image": ""}', "line 1: 'image' is empty."),
    "data URI": (
        "p.jsonl",
        '{"prompt": "a", "image": "data:image/png;base64,' + "QUJD" * 999 + '"}',
        "… is an address",
    ),
    "URL": ("p.jsonl", '{"prompt": "a", "image": "https://e.org/a.png"}', "image 'https://e.org/a.png' is an address"),
    "folder": ("p.jsonl", '{"prompt": "a", "image": "."}', "is not a file."),
    "two pictures": ("p.jsonl", '{"prompt": "a", "image": ["a.png", "b.png"]}', "line 1: there are 2 images; an edit"),
    "not a picture": ("p.jsonl", '{"prompt": "a", "image": "p.jsonl"}', "is not a whole picture in a format that is"),
    "nan": ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": [NaN]}', "line 2: not valid JSON: NaN is not a number"),
    "infinity in an array": ("p.json", '["a", {"prompt": "b", "x": -Infinity}]', "entry 2: not valid JSON: -Infinity"),
    "infinity by digits": ("p.jsonl", '{"prompt": "b", "x": 1e999}', "line 1: not valid JSON: 1e999 is not a number"),
    "nan in a table": ("p.csv", 'prompt,metadata\na,"{""x"": NaN}"\n', "line 2: metadata: not valid JSON: NaN"),
    "after blank lines": ("p.json", '\n\n["a",\n"b" 3]', "line 4: not valid JSON: Expecting ',' delimiter at column 5"),
    "array not closed": ("p.json", '["a",\n"b"', "line 2: not valid JSON: Expecting ',' delimiter at column 4."),
    "after the array": ("p.json", '["a"]\n["b"]', "line 2: not valid JSON: Extra data at column 1."),
    "number in array": ("p.json", '["a",\n\n 3]', "line 3: found 3 (a number), expected an object."),
    "empty array": ("p.json", "[]", "are empty; at least one prompt is needed."),
    "deep": ("p.json", "[" * 100_000, "not valid JSON"),
    "cells": ("p.csv", "prompt,task\na,b\nc,d,e\n", "line 3: there are 3 cells; the first line names 2 columns."),
    "column twice": ("p.csv", "prompt,prompt\na,b\n", "line 1: the column 'prompt' is named twice."),
    "quote": ("p.csv", 'prompt,task\n"a" b,c\n', "line 2: not a valid table: ',' expected after '\"'."),
    "open quote": ("p.csv", 'prompt,task\n"a,c\n', "not a valid table: unexpected end of data."),
    "header only": ("p.csv", "prompt,task\n", "are empty; at least one prompt is needed."),
    "metadata in a table": ("p.csv", "prompt,metadata\na,{\n", "line 2: metadata: not valid JSON"),
    "same id": (
        "p.jsonl",
        lines({"prompt": "a", "id": 1}, {"prompt": "b", "idx": "1"}),
        "the id '1' was given in line 1",
    ),
    "utf-16": ("p.txt", "a cat".encode("utf-16"), "is not text in UTF-8"),
    "not gzip": ("p.txt.gz", b"a cat", "cannot be read: Not a gzipped file"),
    "cut gzip": ("p.txt.gz", gzip.compress(b"a cat" * 99)[:-9], "cannot be read: Compressed file ended before"),
    "other form": ("p.xlsx", b"", "are not in a form that is read: a .jsonl, .json, .txt, .csv, .tsv file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_found_at_load(tmp_path, case):
    name, content, words = REFUSED[case]
    said = refusal(write(tmp_path / name, content))
    assert words.removeprefix("… ") in said
    assert str(tmp_path / name) in said
    assert len(said) < 500


@pytest.mark.parametrize("source", ["", "  ", "datasets:", "nul\0.jsonl", "none.txt", "x" * 300 + ".jsonl"])
def test_sources_that_are_not_there(source):
    assert refusal(source).endswith(".")


def test_all_lines_are_looked_at_before_the_first_fault_is_said(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": " "}, {"prompt": "b", "image": "x.png"}, {"prompt": "<|video_pad|>"}]
    said = refusal(write(tmp_path / "p.jsonl", lines(*rows)))
    assert said.endswith("p.jsonl, line 2: the prompt is empty; 2 more are wrong: 3, 4.")


def test_tokens_of_the_checkpoint_itself(tmp_path, nano_checkpoint):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(nano_checkpoint)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    tokens = reserved_tokens(processor)
    assert set(RESERVED) < set(tokens)
    records = load_prompts(write(tmp_path / "p.txt", "a <|box_start|> b\na <|mine|> b\n"))
    check_drawable(records[:1], tokens, "data.prompts", 8, 4)
    with pytest.raises(UserError, match=r"p.txt, line 2: the prompt contains <\|mine\|>"):
        check_drawable(records, tokens, "data.prompts", 8, 4)


def test_drawing_and_editing_in_one_batch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"prompt": "a cat"}, {"prompt": "make it red", "image": "a.png"}]
    records = load_prompts(write(tmp_path / "p.jsonl", lines(*rows)))
    for samples_at_once in (8, 3):
        with pytest.raises(
            UserError, match=r"edit an image \(.*line 2\) and prompts to draw from scratch \(.*line 1\)"
        ):
            check_drawable(records, (), "data.prompts", samples_at_once, 4)
    for samples_at_once in (4, 2, 1):  # each batch is of one prompt
        check_drawable(records, (), "data.prompts", samples_at_once, 4)
    for one_kind in (records[:1], records[1:]):
        check_drawable(one_kind, (), "data.prompts", 8, 4)


# Real files ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "UNIAR_EVAL_PROMPTS" not in os.environ, reason="UNIAR_EVAL_PROMPTS names no folder of UniAR's files"
)
def test_uniars_evaluation_files_load_unchanged(tmp_path):
    for path in Path(os.environ["UNIAR_EVAL_PROMPTS"]).glob("*.jsonl"):
        if path.stem == "imgedit":  # its pictures do not come along
            for row in map(json.loads, path.read_text().splitlines()):
                picture = tmp_path / row["meta"]["input_image"]
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(picture)
        records = load_prompts(path, image_root=tmp_path)
        assert [record.id for record in records] == [str(number) for number in range(len(records))]
        assert all((record.image is not None) == (path.stem == "imgedit") for record in records)
