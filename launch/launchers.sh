# Sourced by the scripts that start training on GPUs: their options, the Python they use, --dry-run.
# Not a script of its own. Needs bash 3.2 or newer, `set -euo pipefail` and the repository root as working directory.

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# read_options NAMES WORDS...: of WORDS, each option of NAMES sets the variable of its name (--node-rank 1: node_rank=1)
# and --dry-run sets dry_run; the rest, which is for rl.train, goes to train_arguments. --help prints the script's head.
read_options() {
    local known=" $1 " name
    shift
    dry_run="" train_arguments=()
    while [ $# -gt 0 ]; do
        name="${1#--}"
        case "$1" in
            --dry-run) dry_run=yes ;;
            --help) sed -n -e '/^set /q' -e '/^#\( \|$\)/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            --*)
                if [ "${known/ $name /}" != "$known" ]; then
                    [ $# -gt 1 ] || fail "$1 needs a value."
                    printf -v "${name//-/_}" %s "$2"
                    shift
                else
                    train_arguments+=("$1")
                fi
                ;;
            *) train_arguments+=("$1") ;;
        esac
        shift
    done
    [ ${#train_arguments[@]} -gt 0 ] || fail "which recipe? Name a YAML file, such as configs/uniar_sft_512.yaml."
}

# Prints the Python to train with: $PYTHON if set, else .venv's, else the active environment's.
training_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -x .venv/bin/python ]; then
        echo "$PWD/.venv/bin/python"
    else
        command -v python || fail "no .venv and no python on PATH; name one: PYTHON=/path/to/python."
    fi
}

# Prints how many GPUs this machine has.
count_gpus() {
    local found=""
    if command -v nvidia-smi >/dev/null; then
        found="$(nvidia-smi --list-gpus | wc -l)"
    fi
    [ "${found:-0}" -gt 0 ] || fail "nvidia-smi shows no GPU here; say how many processes to start with --gpus N."
    echo $((found))
}

# What torchrun does when it is told to stop: it passes SIGTERM and SIGUSR1 on to the processes, and gives them ten minutes
# to finish their update and save. (Without this, half a minute, and SIGUSR1 ends torchrun itself.)
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=600

# start WHAT COMMAND...: says what is started, and becomes it unless this is a dry run.
start() {
    local what="$1"
    shift
    echo "$what, in $PWD:"
    printf ' %q' "$@"
    echo
    [ -n "$dry_run" ] || exec "$@"
}
