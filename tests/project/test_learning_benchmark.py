"""benchmarks/learning.py on recorded runs and planted gradients; whole runs take minutes and are for its users."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from rl.config.recipe import load_recipe
from rl.records.rows import COLUMNS, encoded, write_rows


@pytest.fixture
def learning(tmp_path, monkeypatch):
    file = Path(__file__).parents[2] / "benchmarks" / "learning.py"
    spec = importlib.util.spec_from_file_location("learning_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_settings_are_recipes_that_load(learning):
    for setting in [*learning.SETTINGS, "tiny_5min", "tiny_gspo"]:
        recipe, *overrides = learning.told(setting)
        load_recipe(Path(recipe), overrides)


def test_the_cosine_of_two_gradients_is_the_squared_share_of_the_signal(learning):
    """Signal of length 1 in noise of length 3: 1 / (1 + 9), between settings as within one."""
    generator = torch.Generator().manual_seed(0)
    weights, batches = 20_000, 30
    signal = torch.nn.functional.normalize(torch.randn(weights, generator=generator), dim=0)
    for name in ("a", "b"):
        noise = torch.randn(batches, weights, generator=generator) * 3 / weights**0.5
        torch.save(signal + noise, learning.gradients_file(name, batches))
    rows = learning.gradient_table(["a", "b"], batches).splitlines()[2:]
    for row in rows:
        raw, _, with_first, _ = (float(cell.split("±")[0]) for cell in row.split("|")[2:6])
        assert raw == pytest.approx(100, abs=8)
        assert with_first == pytest.approx(100, abs=8)


def test_the_error_of_a_cosine_is_how_far_it_goes_from_one_set_of_drawings_to_the_next(learning):
    """Signal whose strength differs from batch to batch: what each batch brings counts in its row and its column."""
    generator, weights, batches, found = torch.Generator().manual_seed(0), 50, 30, []
    signal = torch.nn.functional.normalize(torch.randn(weights, generator=generator), dim=0)
    for _ in range(300):
        strength = 1 + torch.randn(batches, 1, generator=generator)
        noise = torch.randn(batches, weights, generator=generator) / weights**0.5
        gradients = strength * signal + noise
        found.append([float(number) for number in learning._cosine(gradients, gradients).split(" ± ")])
    cosines, errors = torch.tensor(found).T
    assert errors.mean() == pytest.approx(float(cosines.std()), rel=0.15)


def drawn(folder: Path, shades: list[tuple[int, float]]) -> None:
    """An evaluation of one caption: grey pictures and their scores."""
    pictures = [encoded(Image.new("RGB", (8, 8), (shade,) * 3), 100) for shade, _ in shades]
    columns = {name: [None] * len(shades) for name in COLUMNS}
    columns |= {"prompt": ["a square"] * len(shades), "picture": pictures, "total": [score for _, score in shades]}
    columns |= {"sample": list(range(len(shades)))}
    folder.mkdir(parents=True)
    write_rows(folder / "evaluations" / "step-000000.parquet", pa.table(columns, schema=pa.schema(COLUMNS)), 0)


def test_diversity_is_of_right_drawings(learning, tmp_path):
    drawn(tmp_path / "drawn", [(0, 1.0), (51, 1.0), (255, 0.0)])
    assert learning.diversity(tmp_path / "drawn") == {"a square": pytest.approx(0.2, abs=0.02)}


def test_a_run_that_has_ended_is_a_row_of_the_table(learning, tmp_path):
    drawn(tmp_path / "before", [(0, 1.0), (51, 1.0)])
    run = learning.run_folder("both", 0)
    drawn(run / "drawn", [(0, 1.0), (26, 1.0)])
    update = {"reward": 0.5, "throughput/images": 100, "seconds/update": 3.0, "frac_reward_zero_std": 0.25, "kl": 0.01}
    lines = [
        {"step": 0, "eval_reward": 0.4, learning.ANSWERS: 0.85},
        *({"step": step, **update} for step in range(1, 51)),
        {"step": 50, "eval_reward": 0.6, learning.ANSWERS: 0.86},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = learning.run_table(["both", "without"], [0, 1]).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["both", "1", "60.0%"]
    assert cells[7:13] == ["+20.0", "75%", "4.00", "8.0", "+1.0", "0.0100"]
    assert float(cells[13].strip("%")) == pytest.approx(51, abs=6)
