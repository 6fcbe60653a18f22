"""benchmarks/gpu.py, on a CPU and a small model."""

import importlib.util
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_table_has_every_phase(monkeypatch, nano_checkpoint, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_of_a_gpu", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    options = ["--checkpoint", str(nano_checkpoint), "--device", "cpu", "--samples", "2", "--size", "64"]
    assert module.main(options) == 0
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    measured = {row[0]: row[1] for row in table[2:]}
    for phase in (
        "golden vectors, float32",
        "0.0 GB of weights from the machine's memory, GB/s",
        "a copy of 4 MB behind them",
        "rollout of 2, eager, ms",
        "decode of 2,",
        "LoRA, a micro",
        "all weights, a micro",
    ):
        (value,) = (value for name, value in measured.items() if name.startswith(phase))
        assert float(value) > 0
    monkeypatch.setitem(module.TOLERANCES, module.torch.float32, 0.0)
    assert any(apart > most for _, apart, most in module.golden(module.Gpu("cpu")))
