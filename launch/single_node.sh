#!/usr/bin/env bash
# Trains on all GPUs of this machine, one process each, with torchrun.
#
#     bash launch/single_node.sh configs/uniar_sft_512.yaml
#     bash launch/single_node.sh --gpus 4 configs/uniar_sft_512.yaml resume=auto trainer.max_steps=100
#     bash launch/single_node.sh --dry-run configs/uniar_sft_512.yaml
#
# --gpus N     processes to start; default: the GPUs that nvidia-smi lists. Without a GPU they train on the CPU.
# --dry-run    say what would be started, and stop.
# Everything else goes to rl.train. PYTHON names the Python to use; default: .venv's, else the active one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/launchers.sh
gpus=""
read_options "gpus" "$@"
gpus="${gpus:-$(count_gpus)}"
python="$(training_python)"

start "$gpus processes on this machine" \
    "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -m rl.train "${train_arguments[@]}"
