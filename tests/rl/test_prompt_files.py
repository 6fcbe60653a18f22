"""What is wrong with a prompt file is found at load, in one sentence with file and line."""

import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from support.prompt_rows import lines, refusal, write

from rl.data.prompts import load_prompts
from rl.data.questions import load_questions
from rl.trainer.build import check_prompts
from uniar.errors import UserError
from uniar.reading.prompt_text import RESERVED, reserved_tokens

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
    "empty list": ("p.jsonl", '{"prompt": "a", "image": []}', "line 1: 'image' is an empty list; leave the field out"),
    "base64": ("p.jsonl", json.dumps({"prompt": "a", "image": "iVBOR" * 9999}), "line 1: the path 'iVBORiVBOR"),
    "base64 as id": ("p.jsonl", lines(*[{"prompt": "a", "id": "iVBOR" * 9999}] * 2), "line 2: the id 'iVBORiVBOR"),
    "not parquet": ("p.parquet", b"PAR1", "is not Parquet that can be read"),
    "Latin-1": ("p.jsonl", '{"prompt": "a"}\n{"prompt": "é"}'.encode("latin-1"), "is not text in UTF-8: invalid co"),
    "line of Latin-1": ("p.csv", "prompt\na\né\n".encode("latin-1"), "in line 3."),
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
    "utf-32": ("p.txt", "a cat".encode("utf-32"), "is not text in UTF-8 but looks like UTF-32; save it as UTF-8, "),
    "utf-16": ("p.txt", "a cat".encode("utf-16"), "is not text in UTF-8 but looks like UTF-16; save it as UTF-8, "),
    **{
        f"{name}{suffix} without a mark": (
            f"p{suffix}",
            content.encode(name),
            f"is not text in UTF-8 but looks like {name}; save it as UTF-8, such as with `iconv -f {name} -t UTF-8",
        )
        for name, suffix, content in (
            ("UTF-16LE", ".jsonl", '{"prompt": "größer, 一只猫"}'),
            ("UTF-16BE", ".json", '["a cat"]'),
            ("UTF-16LE", ".csv", "prompt\n一只猫\n"),
            ("UTF-32BE", ".txt", "a cat\n"),
        )
    },
    "zeroed by a crash": ("p.jsonl", bytes(64), "line 1: not valid JSON"),
    "git lfs": ("p.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:4\n", "is a pointer of Git LFS, not"),
    "workbook": (
        "p.csv",
        b"PK\3\4" + bytes(99),
        "is a zip archive or an Excel workbook; unpack",
    ),
    "parquet as lines": ("p.jsonl", b"PAR1" + bytes(9), "is Parquet; end its name in .parquet."),
    "packed": ("p.jsonl", gzip.compress(b"{}"), "is packed by gzip; end its name in .gz."),
    "no width": ("p.txt", "a\n\u200b\ufeff\n", "line 2: the prompt is empty."),
    "not gzip": ("p.txt.gz", b"a cat", "cannot be read: Not a gzipped file"),
    "cut gzip": ("p.txt.gz", gzip.compress(b"a cat" * 99)[:-9], "cannot be read: Compressed file ended before"),
    "other form": ("p.xlsx", b"", "are not in a form that is read: a .jsonl, .ndjson, "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_found_at_load(tmp_path, case):
    name, content, words = REFUSED[case]
    said = refusal(write(tmp_path / name, content))
    assert words.removeprefix("… ") in said
    assert str(tmp_path / name) in said
    assert len(said) < 500


@pytest.mark.parametrize(
    "source", ["", "  ", "datasets:", "nul\0.jsonl", "none.txt", "x" * 300 + ".jsonl", "a/" * 4000]
)
def test_sources_that_are_not_there(source):
    assert refusal(source).endswith(".")


@pytest.mark.parametrize(
    "source", ["https://e.org/p.jsonl", "hf://datasets/a/b", "s3://a/mix.yaml", "datasets:hf://a/b"]
)
def test_addresses(source, tmp_path):
    assert " is an address, not a path; save what is there" in refusal(source)
    mix = write(tmp_path / "mix.yaml", f"datasets:\n- json_path: {source}\n")
    assert f"{mix}, line 2: " in refusal(mix)
    assert "is an address, not a path" in refusal(mix)


def test_only_regular_files_are_read(tmp_path):
    """What has no end, or waits for somebody to write."""
    os.mkfifo(tmp_path / "p.jsonl")
    for source in ("/dev/zero", tmp_path / "p.jsonl"):
        assert refusal(source) == f"the prompt file '{source}' cannot be read: it is a device or a pipe."
        with pytest.raises(UserError, match="it is a device or a pipe"):
            load_questions(source)


def test_the_home_folder_in_a_mix(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data" / "p.txt", "a\nb\n")
    for name in ("~/data/p.txt", "$HOME/data/p.txt", "${HOME}/data/p.txt"):
        mix = write(tmp_path / "mixes" / "mix.yaml", f"datasets:\n- json_path: {name}\n  sampled_ratio: 0.5\n")
        assert len(load_prompts(mix)) == 1


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
    check_prompts(processor, records[:1], [], [])
    with pytest.raises(UserError, match=r"p.txt, line 2: the prompt contains <\|mine\|>"):
        check_prompts(processor, [], records, [])


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
