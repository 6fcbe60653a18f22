"""`remote`: any reward that another process serves with `uniar-rl rewards serve`."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from rewards.contract.base import Reward, RewardBatch
from rewards.remote.servers import ServerError, ServerPool, check_seconds, read_token
from rewards.remote.statuses import is_passing
from rewards.remote.wire import encode_request
from rewards.remote.wire_answers import BadAnswer, read_answer
from rewards.remote.wire_images import BadRequest
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_OF_THE_REQUEST = (400, 413)  # what one sample can be to blame for


class Remote(Reward):
    """The scores that a reward server gives. A sample it gives none for, in whatever way, has failed: on_error says
    what becomes of the run. Attempts are counted here, so `retries` has no use.

    Args:
        url: the server, such as http://127.0.0.1:8000; or a list of servers that serve the same.
        reward: which of its rewards; null where it serves just one.
        deadline: seconds after which whatever has no score yet has failed.
        timeout: seconds for one request, before another server is asked.
        attempts: of one request that fail, over all servers; while servers are busy it waits for the deadline instead.
        batch_size: samples in a request.
        concurrency: requests in flight at a time, per server.
        send_bits: send the visual bits too, for rewards that read them.
        token_env: environment variable with the servers' token, if they need one.

    Raises UserError for parameters that cannot work; at load, where no server can be reached or one does not serve the
    reward.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        reward: str | None = None,
        deadline: float = 300.0,
        timeout: float = 120.0,
        attempts: int = 4,
        batch_size: int = 8,
        concurrency: int = 2,
        send_bits: bool = False,
        token_env: str = "UNIAR_REWARDS_TOKEN",
    ):
        check_seconds("deadline", deadline)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; at least 1 is needed.")
        self.reward, self.deadline, self.batch_size, self.send_bits = reward, deadline, batch_size, send_bits
        self._token_env = token_env
        self._pool = ServerPool(
            url,
            token=read_token(token_env),
            health="/health",
            timeout=timeout,
            attempts=attempts,
            concurrency=concurrency,
        )
        self._loaded = False

    def load(self) -> None:
        """Asks each server what it serves. One that cannot be reached yet is no reason to stop, as long as another
        can."""
        if self._loaded:
            return
        reached = {}
        for url, answer in self._pool.get("/v1/rewards").items():
            if isinstance(answer, ServerError):
                if answer.status is not None and not is_passing(answer.status):
                    hint = f" (the token is read from {self._token_env})" if answer.status == 401 else ""
                    raise UserError(f"{answer}{hint}.")
                logger.warning("%s; the other servers are used until it can be.", answer)
                problem = answer
            else:
                reached[url] = _served(url, answer)
        if not reached:
            raise UserError(f"no reward server can be used: {problem}.")
        for url, served in reached.items():
            if self.reward is None:
                if len(served) > 1:
                    raise UserError(f"{url} serves {', '.join(served)}; say by 'reward' which of them.")
                self.reward = next(iter(served))
            if self.reward not in served:
                hint = did_you_mean(self.reward, served)
                raise UserError(f"{url} does not serve {self.reward!r}; served: {', '.join(served)}.{hint}")
        self.pointwise = all(served[self.reward]["pointwise"] for served in reached.values())
        self.needs_image = any(served[self.reward]["needs_image"] for served in reached.values())
        self._loaded = True

    def close(self) -> None:
        self._pool.close()

    async def score(self, batch: RewardBatch) -> list[Any]:
        """A number, None, a mapping with details, or an exception for each sample; see rewards/remote/wire.py."""
        await asyncio.to_thread(self.load)
        deadline = asyncio.get_running_loop().time() + self.deadline
        # A sample that neither drew nor wrote is not sent: there is nothing to score.
        rows = [row for row in range(len(batch)) if batch.images[row] is not None or batch.texts[row]]
        size = self.batch_size if self.pointwise else max(1, len(rows))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        results = await asyncio.gather(*(self._score_part(batch.select(part), deadline) for part in parts))
        found = dict(zip(rows, (result for part in results for result in part), strict=True))
        return [found.get(row) for row in range(len(batch))]

    async def _score_part(self, part: RewardBatch, deadline: float) -> list[Any]:
        def body() -> bytes:
            return encode_request(part, [self.reward], self.send_bits)

        try:
            return read_answer(await self._pool.post("/v1/score", body, deadline), self.reward, len(part))
        except (ServerError, BadRequest, BadAnswer) as error:
            of_a_sample = isinstance(error, BadRequest) or getattr(error, "status", None) in _OF_THE_REQUEST
            if of_a_sample and self.pointwise and len(part) > 1:
                alone = [self._score_part(part.select([row]), deadline) for row in range(len(part))]
                return [result for [result] in await asyncio.gather(*alone)]
            return [error] * len(part)


def _served(url: str, answer: bytes) -> dict[str, dict[str, bool]]:
    """Name → what a server's /v1/rewards says of it. Raises UserError."""
    try:
        served = {
            str(entry["name"]): {
                "pointwise": entry["pointwise"] is True,
                "needs_image": entry.get("needs_image") is not False,  # older servers do not say
            }
            for entry in json.loads(answer)["rewards"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{url} is not a reward server: what it answers to /v1/rewards is not that format.") from error
    if not served:
        raise UserError(f"{url} serves no reward; one at least is needed.")
    return served
