"""What a run's folder and the checkpoints in it contain. Every file and folder of theirs is named here alone, with who
writes it, who reads it, and when it must be there.

A file is named as it is in its folder. What is read back is written whole or not at all, but for the two files of
lines, whose last line may be cut short.
"""

from uniar.reading.files import PARTIAL as PARTIAL
from uniar.weight_files import ADAPTER, MODEL

# In a run's folder, and a copy in each checkpoint of the first three --------------------------------------------------

CONFIG = "config.yaml"
"""The resolved recipe. Written by the run that takes the folder; read by a run that resumes, by export and for the
model card. A folder without it holds no run; a checkpoint of an older version has none and is not compared."""

METRICS = "metrics.jsonl"
"""One object a log line or evaluation, by step. Written by every log; read for the plot, and put back from the
checkpoint by a run that resumes. Not there before the first log."""

DATA = "data.json"
"""What the prompts and questions were (rl/run/data_state.py). Written by the run that takes the folder; read by one
that resumes, to notice others, and for evaluations. A checkpoint of an older version has none and is not compared."""

DETAILS = "details.jsonl"
"""What rewards say about the samples of training, one object per sample; the main process's share. Written with the
metrics; only people read it."""

PLOT = "metrics.png"
"""Reward, KL and entropy, and the share of right answers, over the steps. Only people read it."""

SAMPLES = "samples"
"""Folder of step-N.png: the same held-out prompts each time, reward under each image. Only people read it."""

EVALUATIONS = "evaluations"
"""Folder of step-N.json: scores of all held-out samples, and under "understanding" the answers to all held-out
questions. Written by each evaluation; read for the report, the model card, and by a run that resumes. Beside them
step-N.parquet: the samples themselves, with what rewards say and their pictures (rl/records/rows.py), written before
it; and questions.parquet: the questions, written when a run begins. Read for the page and by `uniar-rl compare`."""

GROUPS = "groups"
"""Folder of step-N.parquet: samples that update N was trained on, whole groups, with their advantages. Read for the
page."""

ENVIRONMENT = "environment.json"
"""Versions, hardware, command. Written by the run that takes the folder; read for the page."""

REPORT = "report.html"
"""All of it on one page (rl/report). Written after each evaluation; only people read it."""

BAD_BATCHES = "bad_batches"
"""Folder of step-N-rank-R-K.safetensors: batches over which the watch has warned, skipped or stopped. Only people read
it."""

BEST = "best"
"""With evaluate.early_stop: the exported checkpoint of the best evaluation."""

BEST_STEP = "best.json"
"""The update that best/ is of. Written after it; read by a run that resumes from before that update, which drops
both."""

FINAL = "final"
"""The exported checkpoint. Written when training has ended."""

FINISHED = "final.json"
"""The update that final/ is of, and its files: the run is finished. Written when these are all there, before final/ has
its name; read by a run that would resume, which gives it the name if need be, and dropped by one that trains on."""

LOCK = ".lock"
"""Taken by the process that holds the folder. The system lets go of it when that process ends, however it ends; of a
machine that died, NFS does after its lease, some 90 seconds."""

CHECKPOINT = "checkpoint-"
"""With the step behind it, a folder to resume from."""

SAVING = ".saving"
"""Folder in which a checkpoint is written before it gets its name."""

REPLACED = ".replaced"
"""End of the name of what has just given its place to something newer, as PARTIAL is of what is being written. Both are
removed by whoever finds them; what has nothing newer in its place yet gets its name back first."""

# In a checkpoint ------------------------------------------------------------------------------------------------------

MANIFEST = "manifest.json"
"""Size and SHA-256 of every file. Written last; read by whoever takes the checkpoint. Without it the writing was never
finished."""

STATE = "trainer_state.json"
"""transformers' own: the step and the log. Required to resume; an exported checkpoint never has one."""

RANDOM_STATE, RANDOM_STATES = "rng_state.pth", "rng_state_*.pth"
"""transformers' own, of one process, and of each of several: also tells how many wrote the checkpoint."""

MODEL_CONFIG = "config.json"
"""transformers' own, of the model. Required unless there is an adapter."""

MODEL_WEIGHTS = f"{MODEL}.safetensors"
"""transformers' own, or shards and their index. Not there under ZeRO-3, whose shards hold the weights
(rl/distributed/engine.py knows their files), and with an adapter."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", f"{ADAPTER}.safetensors"
"""peft's own, with model.lora. Required there; the weights may be in ZeRO's shards instead."""

EMA = "ema"
"""With model.ema: folder of the averaged weights, a file of slices a rank (rl/distributed/weight_slices.py). Read by a
run that resumes, which begins a new average without it, and by export and evaluation of the averages, which need it."""

REFERENCE = "reference"
"""With algorithm.reference_refresh: folder of the reference's weights, as the averages'."""

EARLY_STOP, GUARDS, KL_CONTROL, PROMPT_STREAM, WATCH = "early_stop", "guards", "kl_control", "prompt_stream", "watch"
"""With .json behind it, the numbers that evaluate.early_stop, watch.guards, algorithm.kl_control,
rollout.dynamic_sampling and the watch go on from. Written and read by rl/checkpoint/stateful_callback.py; what is
missing starts anew, with a warning."""

# In an exported folder ------------------------------------------------------------------------------------------------

CARD = "README.md"
"""The model card. Whoever keeps the model may write into it."""
