"""The sentences that UniAR-Tiny's tokenizer learns its words from: the world's own."""

from rl.tiny.captions import drawing
from rl.tiny.edits import edit
from rl.tiny.questions import question
from rl.tiny.stages.stage import randomness


def sentences(seed: int, each: int = 4000) -> list[str]:
    """Captions, questions with answers, and instructions of the training split, and what the chat template adds."""
    rng, _ = randomness(seed, "sentences")
    found = [drawing(rng, "train").prompt for _ in range(each)]
    for _ in range(each):
        asked = question(rng, "train")
        found += [asked.question, asked.answer]
    found += [edit(rng, "train").instruction for _ in range(each)]
    return found + ["<image_gen> generate image 4 4", "system\n", "user\n", "assistant\n"] * each
