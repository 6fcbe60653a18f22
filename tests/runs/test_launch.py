"""The scripts of launch/ and .ci/: which Python they take, when they install, what they run."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])
# All that the scripts may need besides a Python: what any Unix has.
TOOLS = ("bash", "dirname", "cmp", "cp", "cat")

# Plays the part of every Python: answers the version check with the exit code in $SUITABLE, makes an environment out of
# itself, logs whatever else it is asked to do.
FAKE_PYTHON = """\
#!/bin/sh
case "$1" in
  --version) echo "Python 3.11.0"; exit 0 ;;
  -c) case "$2" in *version_info*) exit "${SUITABLE:-0}" ;; *pip*) exit "${NO_PIP:-0}" ;; *) exit 0 ;; esac ;;
esac
echo "$(basename "$0") $*" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then
  for last in "$@"; do :; done
  mkdir -p "$last/bin"
  cp "$0" "$last/bin/python"
  cp "$0" "$last/bin/uniar-rl"
fi
if [ "$1 $2" = "-m pip" ] || [ "$1" = pip ]; then echo "Collecting torch"; exit "${PIP_EXIT:-0}"; fi
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A bare clone as far as the scripts can see, beside a PATH with one Python."""
    root = tmp_path / "clone with a space"
    for name in ("launch", ".ci"):
        shutil.copytree(ROOT / name, root / name)
    (root / "pyproject.toml").write_text("[project]\n")
    path = tmp_path / "bin"
    path.mkdir()
    for tool in (*TOOLS, "sh", "basename", "mkdir"):
        (path / tool).symlink_to(shutil.which(tool))
    write_executable(path / "python3", FAKE_PYTHON)
    return root


def write_executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def run(clone: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = clone.parent / "bin"
    environment = {"PATH": str(path), "LOG": str(clone.parent / "log"), "HOME": str(clone.parent), **variables}
    return subprocess.run(
        ["bash", str(clone / script), *arguments],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def log(clone: Path) -> list[str]:
    """The logged commands since the last call."""
    file = clone.parent / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_syntax(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", ["launch/test.sh", "launch/quickstart.sh", ".ci/run"])
def test_scripts_stop_at_the_first_error_and_can_be_executed(script: str) -> None:
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR


def test_first_run_installs_second_run_does_not(clone: Path) -> None:
    assert run(clone, "launch/test.sh").returncode == 0
    checks = ["python -m ruff check .", "python -m ruff format --check .", "python -m mypy"]
    shared_out = "python -m pytest -n auto --maxprocesses 8 --dist worksteal"
    installation = "python -m pip install --disable-pip-version-check -e .[dev]"
    assert log(clone) == ["python3 -m venv --clear .venv", installation, *checks, shared_out]

    assert run(clone, "launch/test.sh", "-k", "two words").returncode == 0
    assert log(clone) == [*checks, f"{shared_out} -k two words"]

    assert run(clone, "launch/test.sh", "tests/uniar").returncode == 0
    assert log(clone) == [*checks, "python -m pytest tests/uniar"]

    (clone / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    assert run(clone, ".ci/run").returncode == 0
    covered = [f"{shared_out} --cov --cov-report=", "python -m coverage report"]
    assert log(clone) == [installation, *checks, *covered]


def test_quickstart_trains_with_the_users_overrides(clone: Path) -> None:
    command = "uniar-rl train configs/quickstart.yaml trainer.max_steps=2"
    assert run(clone, "launch/quickstart.sh", "trainer.max_steps=2").returncode == 0
    assert log(clone)[1:] == ["python -m pip install --disable-pip-version-check -e .[train,rewards]", command]

    # The tests need more than what is there; the quickstart is content with what the tests installed.
    assert run(clone, "launch/test.sh").returncode == 0
    assert log(clone)[0].endswith("-e .[dev]")
    (clone / ".venv" / "installed[train,rewards].toml").unlink()
    assert run(clone, "launch/quickstart.sh").returncode == 0
    assert log(clone) == ["uniar-rl train configs/quickstart.yaml"]


def test_a_failed_installation_is_tried_again(clone: Path) -> None:
    failed = run(clone, "launch/quickstart.sh", PIP_EXIT="3")
    assert (failed.returncode, failed.stderr) == (3, "Collecting torch\n")
    assert [line.split()[2] for line in log(clone)] == ["venv", "pip"]
    again = run(clone, "launch/quickstart.sh")
    assert (again.returncode, again.stderr) == (0, "")
    assert "Collecting" not in again.stdout
    assert [line.split()[2] for line in log(clone)] == ["pip", "configs/quickstart.yaml"]


def test_uv_installs_where_it_is_there(clone: Path) -> None:
    write_executable(clone.parent / "bin" / "uv", FAKE_PYTHON)
    assert run(clone, "launch/quickstart.sh", NO_PIP="1").returncode == 0
    assert log(clone)[1:] == [
        "uv pip install --python .venv/bin/python -e .[train,rewards]",
        "uniar-rl train configs/quickstart.yaml",
    ]


def test_pip_installs_where_uv_cannot(clone: Path) -> None:
    """It does not know the address of a mirror that pip was told of."""
    write_executable(clone.parent / "bin" / "uv", "#!/bin/sh\necho 'No solution found'; exit 1\n")
    finished = run(clone, "launch/quickstart.sh")
    assert (finished.returncode, "No solution" in finished.stdout + finished.stderr) == (0, False)
    assert log(clone)[1:] == [
        "python -m pip install --disable-pip-version-check -e .[train,rewards]",
        "uniar-rl train configs/quickstart.yaml",
    ]


def test_an_environment_without_pip_gets_one(clone: Path) -> None:
    run(clone, "launch/quickstart.sh", PIP_EXIT="3")
    log(clone)
    assert run(clone, "launch/quickstart.sh", NO_PIP="1").returncode == 0
    assert log(clone)[0] == "python -m ensurepip --default-pip"


def test_without_a_suitable_python_the_message_says_what_to_do(clone: Path) -> None:
    finished = run(clone, "launch/quickstart.sh", SUITABLE="1")
    assert finished.returncode == 1
    assert "No Python 3.11, 3.12 or 3.13 with the venv module found on PATH" in finished.stderr
    assert "PYTHON=/path/to/python" in finished.stderr
    assert not (clone / ".venv").exists()


def test_the_python_variable_decides(clone: Path) -> None:
    own = clone.parent / "own python"
    write_executable(own, FAKE_PYTHON)
    assert run(clone, "launch/test.sh", PYTHON=str(own)).returncode == 0
    assert log(clone)[0] == "own python -m venv --clear .venv"

    shutil.rmtree(clone / ".venv")
    finished = run(clone, "launch/test.sh", PYTHON=str(own), SUITABLE="1")
    assert finished.returncode == 1
    assert f"PYTHON={own} is not a Python 3.11, 3.12 or 3.13" in finished.stderr


def test_the_version_check_accepts_this_python(clone: Path) -> None:
    """The one line of Python in the scripts, run for real."""
    finished = subprocess.run(
        ["bash", "-c", f'set -euo pipefail; source "{ROOT}/launch/environment.sh"; find_python'],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == sys.executable, finished.stderr


def test_licence_is_the_full_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000
