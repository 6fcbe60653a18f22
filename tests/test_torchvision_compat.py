"""What is done about a torchvision that cannot load its operators, and to any other nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

MODULE = Path(__file__).parents[1] / "uniar" / "torchvision_compat.py"
# The module by itself: importing the package would run it.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("compat", {str(MODULE)!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""


def run(code: str, stub: Path | None = None) -> subprocess.CompletedProcess:
    path = "" if stub is None else f"import sys; sys.path.insert(0, {str(stub)!r})\n"
    return subprocess.run([sys.executable, "-c", path + LOAD + code], capture_output=True, text=True, timeout=120)


def stub(folder: Path, code: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    return folder


def test_the_package_makes_torchvision_importable():
    import torchvision.transforms.v2.functional as functional

    assert functional.resize(torch.zeros(3, 4, 4), [2, 2]).shape == (3, 2, 2)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch with CUDA is left alone")
def test_missing_operators_are_declared(tmp_path):
    """A stand-in that fails as the index's torchvision does beside a CPU torch, half imported."""
    folder = stub(
        tmp_path,
        """
from torchvision import half
import torch
try:
    torch.ops.torchvision.nms
except AttributeError:
    raise RuntimeError("operator torchvision::nms does not exist")
""",
    )
    (folder / "torchvision" / "half.py").write_text("print('half')")
    done = run(
        """
assert compat.ensure_torchvision_imports() is True
import torch, torchvision
assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
assert compat.ensure_torchvision_imports() is True  # a second call does nothing
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("no kernel")
""",
        folder,
    )
    assert done.stdout.split("\n") == ["half", "half", "no kernel", ""], done.stderr


def test_a_torchvision_that_works_is_left_alone(tmp_path):
    done = run(
        "assert compat.ensure_torchvision_imports() is False\nassert compat._library is None", stub(tmp_path, "")
    )
    assert done.returncode == 0, done.stderr


def test_another_failure_is_not_hidden_and_cuda_is_left_alone(tmp_path):
    done = run(
        """
import torch
torch.version.cuda = "13.0"
assert compat.ensure_torchvision_imports() is False  # without so much as an import
print("left alone")
torch.version.cuda = None
compat.ensure_torchvision_imports()
""",
        stub(tmp_path, "raise RuntimeError('disk on fire')"),
    )
    assert done.stdout == "left alone\n"
    assert done.returncode == 1
    assert "disk on fire" in done.stderr
