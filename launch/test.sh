#!/usr/bin/env bash
# Lint, format and type check and the default tests, from a bare clone with only Python 3.11, 3.12 or 3.13:
#
#     bash launch/test.sh                       # everything but the tests marked slow and gpu
#     bash launch/test.sh tests/uniar/test_presets.py -k nano
#     bash launch/test.sh -m slow
#
# Arguments go to pytest. PYTHON names the Python that .venv is made with. A second run starts at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment "[dev]"

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# The whole suite is shared out over the cores; a file or two are faster without workers to start.
workers=()
case " $*" in *" tests"* | *" -m "*) ;; *) workers=(-n auto --maxprocesses 8 --dist worksteal) ;; esac
exec .venv/bin/python -m pytest ${workers[@]+"${workers[@]}"} "$@"
