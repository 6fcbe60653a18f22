#!/usr/bin/env bash
# The main job on UniAR-Tiny, from a bare clone with only Python 3.11, 3.12 or 3.13; no GPU, no download but packages:
#
#     bash launch/quickstart.sh
#     bash launch/quickstart.sh trainer.max_steps=20        # any recipe key
#
# Arguments go to `uniar-rl train configs/quickstart.yaml`. PYTHON names the Python that .venv is made with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment "[train,rewards]"

exec .venv/bin/uniar-rl train configs/quickstart.yaml "$@"
