#!/usr/bin/env bash
# Trains on several machines with torchrun. Run the same command on each of them; they meet at --master, one of them,
# and share a file system, where the recipe, the prompts and the run's folder are.
#
#     bash launch/multi_node.sh --nodes 2 --master node0 configs/uniar_sft_2nodes.yaml
#     bash launch/multi_node.sh --nodes 2 --master node0:29511 --gpus 8 configs/uniar_sft_2nodes.yaml resume=auto
#
# --nodes N      machines.
# --master HOST  name or address of one of them, as the others reach it; HOST:PORT for another port than 29500.
# --gpus N       processes on each machine; default: the GPUs that nvidia-smi lists.
# --run-id NAME  tells runs with the same master apart; default: uniar-rl.
# --dry-run      say what would be started, and stop.
# Everything else goes to rl.train. PYTHON names the Python to use; default: .venv's, else the active one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/launchers.sh
nodes="" master="" gpus="" run_id="uniar-rl"
read_options "nodes master gpus run-id" "$@"
[ -n "$nodes" ] || fail "how many machines? --nodes N is missing."
[ -n "$master" ] || fail "where do they meet? --master HOST is missing."
gpus="${gpus:-$(count_gpus)}"
python="$(training_python)"
[ "${master%:*}" != "$master" ] || master="$master:29500"

start "$gpus processes here, one of $nodes machines that meet at $master" \
    "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$gpus" \
    --rdzv_backend c10d --rdzv_endpoint "$master" --rdzv_id "$run_id" -m rl.train "${train_arguments[@]}"
