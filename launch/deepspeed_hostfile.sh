#!/usr/bin/env bash
# Trains on the machines of a DeepSpeed hostfile. Run it once, on one of them: it starts the others over ssh (pdsh, with
# keys in place; the project and its environment at the same path everywhere, on a shared file system or not).
#
#     bash launch/deepspeed_hostfile.sh --hostfile hosts configs/uniar_sft_2nodes.yaml
#
# --hostfile FILE   a line for each machine: its name and its GPUs, such as "node0 slots=8".
# --master HOST     address of the first machine, where others cannot reach it by its name.
# --dry-run         say what would be started, and stop.
# Everything else goes to rl.train. PYTHON names the Python to use; default: .venv's, else the active one. Environment
# variables that all machines need go to a file .deepspeed_env, a line of NAME=VALUE each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/launchers.sh
hostfile="" master=""
read_options "hostfile master" "$@"
[ -n "$hostfile" ] || fail "which machines? --hostfile FILE is missing."
[ -f "$hostfile" ] || fail "the hostfile '$hostfile' does not exist."
hosts="$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$hostfile")"
[ -n "$hosts" ] || fail "the hostfile '$hostfile' names no machine; a line is such as 'node0 slots=8'."
python="$(training_python)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # as torchrun does; OCR and data loading have threads of their own

start "one process per slot of $(paste -sd, - <<<"$hosts")" \
    "$python" -m deepspeed.launcher.runner --hostfile "$hostfile" ${master:+--master_addr "$master"} \
    --module rl.train "${train_arguments[@]}"
