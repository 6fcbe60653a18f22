"""Samples play their episodes, in step: equal requests of all samples are one batch of the engine.

Noise depends on nothing but the run's seed, the step, the sample and the number of its turn, so a sample makes the same
whatever it is played beside.
"""

from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from rl.algorithm.guidance import Gaps
from rl.data.prompts import PromptRecord
from rl.episodes.requests import Request, Write
from rl.episodes.running import RunningEpisode
from rl.policy.completion import Completion
from rl.policy.replay import Branch
from rl.policy.samples import DrawSettings, Sample
from rl.policy.trajectory import Trajectory
from rl.policy.turns import Pictures, Texts, Turn
from uniar.conversations import Drawing, Message, Picture, encode_turns
from uniar.generation import draw_noise, rollout
from uniar.reading.pictures import in_rgb
from uniar.reading.prompt_text import reserved_tokens
from uniar.turn_prompt import TurnPrompt
from uniar.writing import end_tokens, text_noise, write

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


def play(
    model: "UniARForConditionalGeneration",
    processor: Any,
    samples: Sequence[Sample],
    settings: DrawSettings,
    *,
    step: int = 0,
    keep_turns: bool = True,
) -> list[Trajectory]:
    """B samples, played to the end of their episodes by `model`.

    In float32 a sample is the same whatever it is played with; in bfloat16 some bits depend on how many are drawn at
    once. keep_turns: with what a replay needs; without, trajectories have no turns.

    Raises UserError for a picture that cannot be opened, and for an episode that fails or asks for what cannot be.
    """
    records: dict[str, PromptRecord] = {}
    players = []
    for sample in samples:
        # A copy of the record, so that what an episode writes into it stays with the sample.
        record = replace(sample.record, metadata=deepcopy(sample.record.metadata))
        if record.image is not None:  # read once for the group, and one object, so that it is encoded once
            vars(record)["pictures"] = records.setdefault(record.id, record).pictures
        players.append(_Player(sample, RunningEpisode(settings.episodes, record)))
    stage = _Stage(model, processor, settings, step, keep_turns)
    while True:
        asked = [(player, request) for player in players if (request := player.episode.request) is not None]
        if not asked:
            return [player.trajectory() for player in players]
        for kind in dict.fromkeys(stage.kind_of(player, request) for player, request in asked):
            together = [pair for pair in asked if stage.kind_of(*pair) == kind]
            stage.serve(kind, together)


@dataclass
class _Player:
    """A sample in the middle of its episode."""

    sample: Sample
    episode: RunningEpisode
    drawing: Drawing | None = None
    texts: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def go_on(self, made: Drawing | str) -> None:
        """Sends what was made, and runs the episode to its next request. Raises UserError where it fails."""
        if isinstance(made, Drawing):
            self.drawing = made
        else:
            self.texts.append(made)
        self.episode.send(made)

    def trajectory(self) -> Trajectory:
        completion = Completion(self.drawing, tuple(self.texts), self.episode.name)
        return Trajectory(self.sample, completion, tuple(self.turns))


_Asked = Sequence[tuple[_Player, Any]]


class _Stage:
    """The engine, as it serves requests of one kind: all drawings of one size, or all texts of one bound."""

    def __init__(
        self, model: "UniARForConditionalGeneration", processor: Any, settings: DrawSettings, step: int, keep: bool
    ) -> None:
        self.model, self.processor, self.settings, self.step, self.keep = model, processor, settings, step, keep
        self._fitted: dict[tuple[int, int, int], tuple[Image.Image, Image.Image]] = {}
        self._reserved = ("\0", *reserved_tokens(processor))

    def kind_of(self, player: _Player, request: Request) -> tuple[int, ...]:
        """(height, width) of a drawing, (longest,) of a text."""
        if isinstance(request, Write):
            return (self.settings.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens,)
        size = request.size or self.settings.size_of(player.sample, self.step)
        unit = self.model.config.vision_config.pixels_per_token
        self.settings.check_size(size, unit, f"the episode {player.episode.name}: ")
        return tuple(size)

    def serve(self, kind: tuple[int, ...], asked: _Asked) -> None:
        """Makes what is asked for, and lets each episode go on."""
        if len(kind) == 2:
            self._draw(*kind, asked)
        else:
            self._write(kind[0], asked)

    def _draw(self, height: int, width: int, asked: _Asked) -> None:
        settings, unit = self.settings, self.model.config.vision_config.pixels_per_token
        grid = (height // unit, width // unit)
        conversations = [
            [Message("user", (request.prompt, *(self._fit(one, height, width) for one in request.pictures)))]
            for _, request in asked
        ]
        guided = settings.guidance_scale is not None or settings.unconditional
        prompt, owners = self._encoded(conversations, grid=grid, unconditional=guided)
        seeds = [settings.bits_seed(player.sample, self.step, player.episode.count) for player, _ in asked]
        drawn = rollout(
            self.model,
            prompt,
            draw_noise(seeds, prompt.new_tokens, self.model.config.vision_config.code_shape),
            prompt_index=owners,
            guidance_scale=settings.guidance_scale,
            temperature=settings.temperature,
            return_gaps=self.keep,
            show_progress=settings.show_progress,
            memory_budget=settings.memory_budget,
            engine=settings.engine,
        )
        if self.keep:
            image_token, twin = self.model.config.image_token_id, prompt.unconditional
            pictures = Pictures(
                drawn.bits,
                Branch.of(prompt, owners, image_token),
                None if twin is None else Branch.of(twin, owners, image_token),
                Gaps(drawn.gap_cond, drawn.gap_uncond),
            )
            self._keep(pictures, asked)
        for (player, _), bits in zip(asked, drawn.bits, strict=True):
            player.go_on(Drawing(bits, grid[0]))

    def _write(self, longest: int, asked: _Asked) -> None:
        settings = self.settings
        prompt, owners = self._encoded([request.messages for _, request in asked], new_tokens=longest)
        seeds = [settings.text_seed(player.sample, self.step, player.episode.count) for player, _ in asked]
        written = write(
            self.model,
            prompt,
            text_noise(seeds, longest),
            prompt_index=owners,
            ends=end_tokens(self.model),
            temperature=settings.text_temperature,
            memory_budget=settings.memory_budget,
            engine=settings.engine,
        )
        if self.keep:
            branch = Branch.before_text(prompt, owners, written.tokens, written.mask)
            self._keep(Texts(written.tokens, written.mask, branch, written.log_probs), asked)
        for (player, _), text in zip(asked, written.texts(self.processor), strict=True):
            player.go_on(self._plain(text))

    def _encoded(self, conversations: Sequence[Sequence[Message]], **turn: Any) -> tuple[TurnPrompt, list[int]]:
        """Each conversation once, and which of them is each sample's."""
        places: dict[Hashable, int] = {}
        owners = [places.setdefault(_key(messages), len(places)) for messages in conversations]
        first = [conversations[owners.index(place)] for place in range(len(places))]
        return encode_turns(first, self.model, self.processor, **turn), owners

    def _fit(self, picture: Picture, height: int, width: int) -> Picture:
        """A picture to edit in the size of the image to draw, as the model was trained (docs/checkpoint-format.md,
        6)."""
        if isinstance(picture, Drawing):
            return picture
        key = (id(picture), height, width)
        if key not in self._fitted:  # kept beside its own picture, so that no other gets its id
            self._fitted[key] = picture, in_rgb(picture).resize((width, height), Image.Resampling.BICUBIC)
        return self._fitted[key][1]

    def _plain(self, text: str) -> str:
        """Without what no later turn may hold: a NUL, and what would be read as a special token."""
        while held := [token for token in self._reserved if token in text]:
            for token in held:
                text = text.replace(token, "")
        return text.strip()

    def _keep(self, rows: Turn, asked: _Asked) -> None:
        for number, (player, _) in enumerate(asked):
            player.turns.append(rows.row(number))


def _key(messages: Sequence[Message]) -> Hashable:
    """Equal for conversations that are the same: texts by their letters, pictures by which object they are."""
    return tuple(
        (message.role, *(part if isinstance(part, str) else id(part) for part in message.parts)) for message in messages
    )
