"""An episode that one sample plays: it is sent what was made and asks for the next turn."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from rl.data.prompts import PromptRecord
from rl.episodes.registry import Episodes
from rl.episodes.requests import Request, fault_of
from uniar.conversations import Drawing
from uniar.errors import UserError
from uniar.reading.plugins import described

MOST_TURNS = 100
"""of a sample: an episode without an end would keep the run, and all processes, waiting"""


class RunningEpisode:
    """The episode of a record's task, run to its first request.

    `request` is what it waits for, None at its end; `count` is the number of turns taken.
    """

    def __init__(self, episodes: Episodes, record: PromptRecord) -> None:
        """Raises UserError as `send` does."""
        self.name = episodes.name_of(record.task)
        self.prompt = record.prompt
        self.count = 0
        self.request: Request | None = None
        self._kinds = sorted(episodes.turns([record.task]))
        self._generator: Generator[Request, Any, None] = episodes.of(record.task)(record)
        self._run(None)

    def send(self, made: Drawing | str) -> None:
        """Takes a turn that was made and runs the episode to its next request. Raises UserError where it fails, asks
        for what cannot be, or ends without a turn."""
        self.count += 1
        # A copy: what an episode does to its drawing changes nothing of what is replayed and scored.
        self._run(replace(made, bits=made.bits.clone()) if isinstance(made, Drawing) else made)

    def end(self) -> None:
        """Leaves it where it is."""
        self._generator.close()

    def _run(self, sent: Drawing | str | None) -> None:
        try:
            self.request = self._generator.send(sent)
        except StopIteration:
            self.request = None
            if not self.count:
                raise UserError(f"the episode {self.name} ended without a turn; it must yield Draw or Write.") from None
            return
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"the episode {self.name} raised {described(error)}, at {self.prompt!r}.") from error
        if fault := fault_of(self.request, self._kinds):
            line = self._generator.gi_frame.f_lineno  # of the yield
            raise UserError(f"the episode {self.name} {fault} (line {line}).")
        if self.count == MOST_TURNS:
            raise UserError(f"the episode {self.name} asks for more than {MOST_TURNS} turns; it must end sooner.")
