# Sourced by the scripts beside it: finds a Python, makes .venv, installs the project into it.
# Not a script of its own. Needs bash 3.2 or newer, `set -euo pipefail` and the repository root as working directory.

# Prints the first Python that can make the environment: $PYTHON if set, else the usual names on PATH.
find_python() {
    local suitable='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if ! "$PYTHON" -c "$suitable" >/dev/null 2>&1; then
            echo "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with the venv and ensurepip modules." >&2
            return 1
        fi
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c "$suitable" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 with the venv module found on PATH (tried python3, python3.13, python3.12, python3.11, python)." >&2
    echo "Install one (on Debian and Ubuntu also its python3-venv package), or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
}

# prepare_environment EXTRAS: .venv with the project and its EXTRAS ("[train,rewards]" or "[dev]"), installed again only after
# pyproject.toml has changed: with uv where that is there and serves, else with pip, whose lines are shown only where it fails. The
# stamp in .venv is the pyproject.toml that was last installed.
prepare_environment() {
    local extras="$1" python
    local stamp=".venv/installed${extras}.toml"
    if cmp -s pyproject.toml "$stamp" || cmp -s pyproject.toml ".venv/installed[dev].toml"; then
        return
    fi
    if ! .venv/bin/python -c '' >/dev/null 2>&1; then
        python="$(find_python)"
        echo "Making .venv with $("$python" --version) ..."
        "$python" -m venv --clear .venv
    fi
    local log=".venv/install.log"
    echo "Installing uniar-rl$extras into .venv (some minutes the first time; its lines go to $log) ..."
    if ! { command -v uv && uv pip install --python .venv/bin/python -e ".$extras"; } >"$log" 2>&1; then
        # uv does not read pip's settings, such as the address of a mirror. An interrupted first run leaves no pip.
        .venv/bin/python -c 'import pip' >/dev/null 2>&1 || .venv/bin/python -m ensurepip --default-pip
        .venv/bin/python -m pip install --disable-pip-version-check -e ".$extras" >"$log" 2>&1 || {
            local status=$?
            cat "$log" >&2
            return "$status"
        }
    fi
    cp pyproject.toml "$stamp"
}
