"""Benchmarks whose images a judge rates, over loopback."""

import json
import re

import pytest
from support.benchmark_files import SMALL, published
from support.hostile_server import hostile_server

from rl.benchmarks.published import read_benchmark
from rl.cli import main
from rl.records.rows import read_rows


def test_a_judge_is_asked_the_questions_of_dpg(nano_checkpoint, tmp_path):
    head = "item_id,text,proposition_id,dependency,question_natural_language\n"
    (tmp_path / "dpg_bench.csv").write_text(f'{head}a,a dog,1,0,"Is there a dog?"\na,a dog,2,1,"Is it black?"\n')

    def no_dog(request):
        said = "no" if "Is there a dog?" in request.content["messages"][-1]["content"][-1]["text"] else "yes"
        request.send({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    with hostile_server(no_dog, {"data": [{"id": "judge"}]}) as server:
        words = ["benchmark", "dpg", "--model", nano_checkpoint, "--prompts", tmp_path / "dpg_bench.csv", *SMALL]
        words += ["--judge", f"{server.url}/v1", "--images-per-prompt", 4, "--output", tmp_path / "out"]
        assert main([*map(str, words)]) == 0
        assert len(server.posts) == 8  # two questions about each of four images
    rows = read_rows(tmp_path / "out/evaluations/step-000000.parquet")
    assert rows["rewards/judge"].to_pylist() == [0.0] * 4  # a dog that is not there is not black
    assert (tmp_path / "out/official/a.png").is_file()


def test_imgedit_is_judged_by_kind_and_its_table_is_in_published_numbers(nano_checkpoint, tmp_path, capsys):
    prompts = published("imgedit", tmp_path)  # "adjust" and "remove"

    def judge(request):
        asked = request.content["messages"][-1]["content"][-1]["text"]
        names, numbers = re.findall(r"(?m)^(.+): N$", asked), (2, 5, 1) if "make the cat blue" in asked else (5, 4, 3)
        said = "\n".join(f"{name}: {number}" for name, number in zip(names, numbers, strict=True))
        request.send({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    with hostile_server(judge, {"data": [{"id": "judge"}]}) as server:
        words = ["benchmark", "imgedit", "--model", nano_checkpoint, "--prompts", prompts, *SMALL[:-2]]
        words = [*map(str, words), "--judge", f"{server.url}/v1", "--output", str(tmp_path / "out")]
        assert main(words) == 0
        questions = [post["messages"][-1]["content"][-1]["text"] for post in server.posts]
        assert ["Visual Seamlessness" in question for question in questions].count(True) == 1  # of "adjust" alone
        assert "logprobs" not in server.posts[0]  # the published numbers are those that were written
        capsys.readouterr()
        lines = json.loads(prompts.read_text())
        lines["5"]["edit_type"] = "recolour"
        prompts.write_text(json.dumps(lines))
        assert main([*words, "--overwrite"]) == 2
        said = capsys.readouterr().err
    assert f"{prompts}, '5': reward 'judge': metadata 'edit_type' is 'recolour'; one of add, adjust" in said
    table = json.loads((tmp_path / "out/table.json").read_text())
    found = {line["name"]: line["scores"] for line in table["by"]["edit_type"]}
    assert found["adjust"] == pytest.approx({"judge": 5 / 3, "judge instruction": 2, "judge uncapped": 8 / 3})
    assert found["remove"] == pytest.approx({"judge": 4, "judge instruction": 5, "judge uncapped": 4})
    assert table["means"]["edit_type"]["scores"]["judge"] == pytest.approx((5 / 3 + 4) / 2)


def test_other_spellings_of_a_kind_are_in_its_line_of_the_table(tmp_path):
    prompts = published("imgedit", tmp_path)
    edit = json.loads(prompts.read_text())["5"]
    spelled = ["alter", "adjust", "Hybrid", "compose", " Add", "add", "recolour", None]
    prompts.write_text(json.dumps({str(n): {**edit, "edit_type": kind} for n, kind in enumerate(spelled)}))
    records = read_benchmark("imgedit", str(prompts))
    kinds = ["adjust", "adjust", "compose", "compose", "add", "add", "recolour", None]
    assert [record.metadata["edit_type"] for record in records] == kinds
    assert [record.row["meta"]["edit_type"] for record in records] == spelled  # which is written beside the images
    prompts.write_text(json.dumps({str(n): {**edit, "edit_type": kind} for n, kind in enumerate(kinds)}))
    assert [record.id for record in read_benchmark("imgedit", str(prompts))] == [record.id for record in records]
