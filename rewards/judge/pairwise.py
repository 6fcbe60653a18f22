"""`pairwise`: which of two pictures is better, asked of a judge; a sample's score is how often it wins in its group."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.judge.completion import Unreadable, read_completion
from rewards.judge.presets import EDIT_PAIR, PAIR
from rewards.judge.template import filled_in
from rewards.judge.vlm_judge import VLMJudge
from rewards.remote.servers import ServerError
from uniar.errors import UserError
from uniar.seeds import seed_of

_VERDICTS = {0.0: 0.5, 1.0: 1.0, 2.0: 0.0}
"""what the judge writes → what that is worth to the first picture"""


class Pairwise(VLMJudge):
    """The win rate of a sample among those of its prompt, 0 to 1, as in Pref-GRPO (arXiv 2508.20751): a judge sees two
    pictures and says which is better. Each pair is shown in both orders, and a tie is half a win. A sample alone with
    its prompt has no score. Where the judge cannot be asked about a pair, or its answer cannot be read, both samples of
    it fail. Details: the wins, and of how many comparisons.

    Args:
        url: the API's base, such as http://127.0.0.1:8000/v1; or a list of servers with the same model.
        model: the name it is served under; null where each server has just one.
        prompt: what the judge is asked; {prompt}, {task} and {metadata.KEY} as for vlm_judge. It must have the answer
            end with "Better: N", where N is 1 for the first picture, 2 for the second and 0 for neither. Of an edit,
            the picture that it began with is shown before the two. null for the question of this project.
        pairs: the most comparisons of a sample, 2 or more, each asked about in both orders: a group of G samples costs
            at most pairs · G requests. null for all with all.
        seed: which samples are compared; the same for the same prompt and number of samples.
        system: a system message; null for none.
        max_tokens: that the judge may write.
        temperature: at which it writes.
        extra: more entries for the request's body, such as chat_template_kwargs.
        deadline: seconds after which whatever has no verdict yet has failed.
        timeout: seconds for one request.
        attempts: of one request that fail, over all servers; while servers are busy it waits for the deadline instead.
        concurrency: requests in flight at a time, per server.
        token_env: environment variable with the API's key; null for none.

    Raises UserError for parameters that cannot work; at load, where no server can be reached or has the model.
    """

    pointwise = False
    usual_range = (0.0, 1.0)

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        prompt: str | None = None,
        pairs: int | None = 4,
        seed: int = 0,
        system: str | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        extra: Mapping[str, Any] | None = None,
        deadline: float = 300.0,
        timeout: float = 120.0,
        attempts: int = 4,
        concurrency: int = 16,
        token_env: str | None = None,
    ):
        super().__init__(
            url,
            model,
            prompt=prompt or PAIR,
            system=system,
            scale=(0, 2),
            ratings={"Better": 1.0},
            rescale="none",
            expectation=False,
            max_tokens=max_tokens,
            temperature=temperature,
            extra=extra,
            deadline=deadline,
            timeout=timeout,
            attempts=attempts,
            concurrency=concurrency,
            token_env=token_env,
        )
        if not self.needs_image:
            raise UserError(
                "prompt has {text}, which the two samples of a pair do not share; pairwise compares pictures."
            )
        if pairs is not None and pairs < 2:
            raise UserError(f"pairs is {pairs}; 2 or more, or null for all with all, is needed.")
        self.pairs, self.seed, self._own_question = pairs, seed, prompt is not None

    async def score(self, batch: RewardBatch) -> list[Any]:
        """For each sample a mapping with `score`, None, or an exception."""
        await asyncio.to_thread(self.load)
        deadline = asyncio.get_running_loop().time() + self.deadline
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(batch.prompts):
            groups.setdefault(prompt, []).append(row)
        asked = [pair for rows in groups.values() for pair in self._pairs(batch.prompts[rows[0]], rows)]
        verdicts = await asyncio.gather(*(self._compared(batch, *pair, deadline) for pair in asked))
        wins: list[list[float]] = [[] for _ in range(len(batch))]
        failed: dict[int, Exception] = {}
        for (one, other), verdict in zip(asked, verdicts, strict=True):
            if isinstance(verdict, Exception):
                failed[one] = failed[other] = verdict
            elif verdict is not None:
                wins[one].append(verdict)
                wins[other].append(1 - verdict)
        return [failed.get(row) or _won(own) for row, own in enumerate(wins)]

    def _pairs(self, prompt: str, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Whom to compare: all, or each with its neighbours in a shuffled ring, so that all are compared as often."""
        count = len(rows)
        if self.pairs is None or self.pairs >= count - 1:
            return list(combinations(rows, 2))
        ring = random.Random(seed_of("pairwise", self.seed, prompt, count)).sample(list(rows), count)
        found = [(ring[n], ring[(n + step) % count]) for step in range(1, self.pairs // 2 + 1) for n in range(count)]
        if self.pairs % 2 and count % 2 == 0:
            found += [(ring[n], ring[n + count // 2]) for n in range(count // 2)]
        return found

    async def _compared(self, batch: RewardBatch, one: int, other: int, deadline: float) -> float | Exception | None:
        """What the comparison is worth to the first of two samples, 0 to 1; None where they lack what the question
        asks for."""
        sources = batch.source_images[one]
        template = EDIT_PAIR if sources and not self._own_question else self.prompt
        if (question := filled_in(template, batch.select([one]))) is None:
            return None
        pictures = [batch.images[one], batch.images[other]]
        orders = ([*sources, *pictures], [*sources, *pictures[::-1]])
        first, second = await asyncio.gather(*(self._verdict(question, shown, deadline) for shown in orders))
        for said in (first, second):
            if isinstance(said, Exception):
                return said
        return (first + 1 - second) / 2

    async def _verdict(self, question: str, pictures: Sequence[Image.Image], deadline: float) -> float | Exception:
        """What an answer is worth to the picture that is shown first, or why it is worth nothing."""
        try:
            said = self.rate(read_completion(await self._ask(question, pictures, deadline)))
            return _VERDICTS[said]
        except (ServerError, Unreadable) as error:
            return error
        except KeyError:
            return Unreadable(f"the judge's Better is {said:g}; 1, 2 or 0 is needed")


def _won(wins: Sequence[float]) -> dict[str, Any] | None:
    if not wins:
        return None
    return {"score": sum(wins) / len(wins), "why": f"won {sum(wins):g} of {len(wins)} comparisons"}
