"""Makes UniAR-Tiny from nothing: a VAE, a bitwise tokenizer with its SD3 decoder, and the AR model that draws, edits
and answers, each trained on pictures that are drawn as they are needed. No data, no other model.

    python -m rl.tiny.train --output models/uniar-tiny
    python -m rl.tiny.train --output models/uniar-tiny --stage tokenizer     one stage; it needs the ones before it

Under three hours with one thread (`--threads 1`); the longest stages are `policy` and `combinations`, 50 minutes each.
An interrupted stage goes on where it stopped; a finished one is not run again.
Left out: the adversarial and perceptual losses of real VAEs and tokenizers, and any data but this small world.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from rl.tiny.stages.checkpoint import finish
from rl.tiny.stages.decoder import train_decoder
from rl.tiny.stages.further import train_combinations, train_noise
from rl.tiny.stages.model import write_untrained
from rl.tiny.stages.policy import train_policy
from rl.tiny.stages.sentences import sentences
from rl.tiny.stages.tokenizer import train_tokenizer
from rl.tiny.stages.vae import train_vae
from uniar.errors import UserError
from uniar.reading.files import read_object, user_path

STAGES = {
    "vae": train_vae,
    "tokenizer": train_tokenizer,
    "decoder": train_decoder,
    "policy": train_policy,
    "combinations": train_combinations,
    "noise": train_noise,
}
NEEDS = {
    "vae": (),
    "tokenizer": ("vae",),
    "decoder": ("vae", "tokenizer"),
    "policy": ("tokenizer",),
    "combinations": ("tokenizer", "policy"),
    "noise": ("tokenizer", "combinations"),
}
DONE_FILE = "stages.json"


def train(folder: Path, *, seed: int, stage: str | None = None, steps: int | None = None) -> None:
    """Runs the stages that `folder` lacks, or the one that is named, and stores the checkpoint in bfloat16.

    `steps` shortens a stage, for a trial. Raises UserError where an earlier stage is missing, or one is not known.
    """
    done_file = folder / DONE_FILE
    done = read_object(done_file) if done_file.is_file() else {}
    if unknown := [name for name in done if name not in STAGES]:
        raise UserError(f"{done_file} has stage {unknown[0]}, which another version ran; train into a new folder.")
    if not (folder / "tokenizer.json").is_file():
        write_untrained(folder, sentences(seed), seed)
    for name in STAGES if stage is None else [stage]:
        missing = [earlier for earlier in NEEDS[name] if earlier not in done]
        if missing:
            raise UserError(f"stage {name} needs stage {missing[0]}, which {folder} lacks; run that first.")
        if name in done:
            print(f"{name}: done, {done[name]}")
            continue
        done[name] = STAGES[name](folder, seed=seed, **({} if steps is None else {"steps": steps}))
        done_file.write_text(json.dumps(done, indent=2) + "\n")
        print(f"{name}: {done[name]}")
    if all(name in done for name in STAGES):
        finish(folder)
        print(f"checkpoint {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=user_path, required=True, help="folder of the checkpoint")
    parser.add_argument("--stage", choices=STAGES, help="this stage alone (default: all that are not done yet)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and noise (default 0)")
    parser.add_argument("--steps", type=int, help="of each stage, for a trial (default: each stage's own)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        train(arguments.output, seed=arguments.seed, stage=arguments.stage, steps=arguments.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
