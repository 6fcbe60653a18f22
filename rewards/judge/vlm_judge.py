"""`vlm_judge`: a vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, …) rates the image."""

import asyncio
import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from rewards.judge.answers import (
    Rating,
    can_take_expectation,
    expected_rating,
    last_first,
    plain,
    read_bare,
    read_json_rating,
    read_labelled,
    read_pattern,
)
from rewards.judge.completion import Completion, Unreadable, read_completion, start_of_answer
from rewards.judge.edit_criteria import EDIT_CRITERIA, KEY, EditCriteria, capped, criteria_of
from rewards.judge.presets import PRESETS
from rewards.judge.template import checked_template, filled_in
from rewards.remote.servers import ServerError, ServerPool, check_seconds, read_token
from rewards.remote.wire_images import encode_image
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_MOST_ANSWER = 100_000  # characters
# What is asked for, and then, where a server refuses it, the next.
_LOGPROBS = ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 5}, {})
_REFUSED = (400, 404, 415, 422, 501)  # what servers answer to a parameter that they do not take


class VLMJudge(Reward):
    """The rating that a judge gives image and prompt, from what it answers: a written number, or the expectation over
    its log-probabilities of the digits in that place, where the server returns them. What it thinks before it answers,
    in tags, channels or a field of its own, is not read. An answer that is not exactly one number on the scale, or was
    cut at `max_tokens`, is a failure of that sample. Attempts are counted here: `retries` has no use.

    Args:
        url: the API's base, such as http://127.0.0.1:8000/v1; or a list of servers with the same model.
        model: the name it is served under; null where each server has just one.
        preset: unified_reward sets prompt, scale, ratings and rescale as UniAR's own RL run did, edit asks whether an
            edit did what it was asked for and nothing else; whatever is given besides wins. imgedit rates an edit as
            ImgEdit-Bench does, by the kind that its metadata names as edit_type: 1 to 5 on three axes of that kind, of
            which the first is the most that the others count, and their mean; a sample without edit_type has no score.
        prompt: what the judge is asked. {prompt} stands for the sample's prompt, {task} for its task, {text} for what
            it wrote last (such a sample needs no image), {metadata.KEY} for an entry of its metadata: a sample that
            lacks it has no score. Other braces stay as they are.
        sources: true to show the pictures that a sample edits, before its image; a sample without has no score. null
            for what the preset does: true for edit and imgedit, whose own prompts need them.
        system: a system message; null for none.
        scale: [low, high], the lowest and highest rating.
        ratings: name → weight of each rating that is read and summed; null for one rating, called Score.
        parser: text reads "NAME: 4" for each rating (for the single one also an answer that is only a number), json
            the number under the key NAME of a JSON object.
        pattern: for text and a single rating, a regular expression instead, whose first group is the number.
        rescale: range maps the scale to 0 to 1, max divides by the highest rating, none leaves it as it is.
        expectation: true to insist on log-probabilities, false to do without, null to use them if the server has them.
        max_tokens: that the judge may write.
        temperature: at which it writes.
        extra: more entries for the request's body, such as chat_template_kwargs.
        deadline: seconds after which whatever has no score yet has failed.
        timeout: seconds for one request.
        attempts: of one request that fail, over all servers; while servers are busy it waits for the deadline instead.
        concurrency: requests in flight at a time, per server.
        token_env: environment variable with the API's key; null for none.

    Raises UserError for parameters that cannot work; at load, where no server can be reached or has the model.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        preset: Literal["unified_reward", "edit", "imgedit"] | None = None,
        prompt: str | None = None,
        sources: bool | None = None,
        system: str | None = None,
        scale: Sequence[float] | None = None,
        ratings: Mapping[str, float] | None = None,
        parser: Literal["text", "json"] = "text",
        pattern: str | None = None,
        rescale: Literal["range", "max", "none"] | None = None,
        expectation: bool | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        extra: Mapping[str, Any] | None = None,
        deadline: float = 300.0,
        timeout: float = 120.0,
        attempts: int = 4,
        concurrency: int = 16,
        token_env: str | None = None,
    ):
        given = PRESETS[preset] if preset else PRESETS["plain"]
        self.by_edit_type = given.by_edit_type
        own = parser != "text" or any(one is not None for one in (prompt, scale, ratings, pattern))
        if self.by_edit_type and own:
            raise UserError(
                "preset imgedit has a prompt, scale, ratings and parser of its own for each kind of edit; leave out "
                "yours, or take preset edit."
            )
        if given.sources and prompt is None and sources is False:
            theirs = "" if self.by_edit_type else ", or give a prompt of your own"
            raise UserError(
                f"sources is false, but preset {preset} asks about two pictures, the one before the edit and the one "
                f"after; leave sources out{theirs}."
            )
        self.model, self.system, self.parser = model, system, parser
        self.prompt = checked_template(given.prompt if prompt is None else prompt)
        self.scale = _checked_scale(given.scale if scale is None else scale)
        self.ratings = _checked_ratings(given.ratings if ratings is None else ratings)
        self.rescale = rescale or given.rescale
        self.sources = given.sources if sources is None else sources
        self.needs_image = "{text}" not in self.prompt
        self.pattern = _checked_pattern(pattern, parser, self.ratings)
        if self.rescale == "max" and self.scale[1] <= 0:
            raise UserError(f"rescale is max, but the highest rating is {self.scale[1]:g}; one above 0 is needed.")
        if expectation and not can_take_expectation(self.scale):
            low, high = self.scale
            raise UserError(f"expectation needs a scale of single digits, 0 to 9; found {low:g} to {high:g}.")
        self.expectation = False if expectation is None and not can_take_expectation(self.scale) else expectation
        if max_tokens < 1 or temperature < 0:
            raise UserError(f"max_tokens is {max_tokens} and temperature {temperature:g}; 1 and 0 are the least.")
        check_seconds("deadline", deadline)
        self.deadline, self._token_env = deadline, token_env
        self._settings = {"max_tokens": max_tokens, "temperature": temperature, **(extra or {})}
        self._asked_for = len(_LOGPROBS) - 1 if self.expectation is False else 0  # which of them requests begin with
        self._taken = False  # whether that has been answered
        self._pool = ServerPool(
            url, token=read_token(token_env), timeout=timeout, attempts=attempts, concurrency=concurrency
        )
        self._loaded = False

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        if self.by_edit_type:
            criteria_of(metadata)

    def check_columns(self, metadata: Iterable[Mapping[str, Any]]) -> None:
        if self.by_edit_type and all(row.get(KEY) is None for row in metadata):
            kinds = ", ".join(EDIT_CRITERIA)
            raise UserError(f"no prompt has {KEY!r} in its metadata, which preset imgedit goes by: one of {kinds}.")

    def load(self) -> None:
        """Asks each server which models it has; one that cannot be reached yet is no reason to stop, as long as another
        can, nor is one that does not list its models."""
        if self._loaded:
            return
        answers = self._pool.get("/models")
        for url, answer in answers.items():
            if isinstance(answer, ServerError):
                if answer.status in (401, 403):
                    raise UserError(f"{answer} (the key is read from {self._token_env or 'nowhere: set token_env'}).")
                continue
            models = _models(answer)
            if self.model is None and len(models) == 1:
                self.model = models[0]
            if models and self.model not in models:
                hint = did_you_mean(self.model or "", models)
                raise UserError(f"{url} has no model {self.model!r}; it has {', '.join(models)}.{hint}")
        unreached = [answer for answer in answers.values() if isinstance(answer, ServerError) and answer.status is None]
        if len(unreached) == len(answers):
            raise UserError(f"no judge can be used: {unreached[-1]}.")
        if self.model is None:
            raise UserError(f"{' and '.join(answers)} list{'s' * (len(answers) == 1)} no model; name it by 'model'.")
        if not any(isinstance(answer, ServerError) and answer.status for answer in answers.values()):
            self._pool.health = "/models"
        self._loaded = True

    def close(self) -> None:
        self._pool.close()

    async def score(self, batch: RewardBatch) -> list[Any]:
        """For each sample a mapping with `score` and what the judge wrote, None, or an exception."""
        await asyncio.to_thread(self.load)
        deadline = asyncio.get_running_loop().time() + self.deadline
        return await asyncio.gather(*(self._score_sample(batch.select([row]), deadline) for row in range(len(batch))))

    async def _score_sample(self, sample: RewardBatch, deadline: float) -> Any:
        try:
            criteria = criteria_of(sample.metadata[0]) if self.by_edit_type else None
        except UserError as error:
            return error
        question = filled_in(criteria.question if criteria else self.prompt, sample)
        lacks_kind = self.by_edit_type and criteria is None
        if question is None or lacks_kind or (self.sources and not sample.source_images[0]):
            return None
        pictures = [*(sample.source_images[0] if self.sources else ()), *filter(None, sample.images)]
        try:
            completion = read_completion(await self._ask(question, pictures, deadline))
            answer = completion.content[start_of_answer(completion.content) :].strip()
            score = self.rate_edit(completion, criteria) if criteria else {"score": self.rate(completion)}
            return {**score, "why": answer}
        except (ServerError, Unreadable) as error:
            return error

    async def _ask(self, question: str, pictures: Sequence[Image.Image], deadline: float) -> bytes:
        """A chat completion, with as many log-probabilities as the server takes. Raises ServerError."""
        level, refusal = 0, None

        def body() -> bytes:
            nonlocal level
            level = max(level, self._asked_for)  # as it is when the request's turn has come
            return self._body(question, pictures, _LOGPROBS[level])

        def less(error: ServerError) -> bool:
            nonlocal level, refusal
            refusal, level, said = refusal or error, level + 1, "logprob" in str(error).lower()
            if error.status not in _REFUSED or (self._taken and not said):
                return False
            if level == len(_LOGPROBS) - (self.expectation is True):
                return False
            if said:  # else it may as well be the picture that is refused: then it is every time
                self._remember(level, error)
            return True

        try:
            answer = await self._pool.post("/chat/completions", body, deadline, less)
        except ServerError as error:
            raise refusal or error from None
        self._remember(level, refusal)
        self._taken = True
        return answer

    def _remember(self, level: int, refusal: ServerError | None) -> None:
        if level > self._asked_for:
            logger.warning("%s; the judge is asked for fewer log-probabilities, or none.", refusal)
            self._asked_for = level

    def rate(self, completion: Completion) -> float:
        """The score that a judge's answer stands for. Raises Unreadable."""
        values = self._values(completion, list(self.ratings))
        return sum(weight * self._rescaled(values[name]) for name, weight in self.ratings.items())

    def rate_edit(self, completion: Completion, criteria: EditCriteria) -> dict[str, float]:
        """The mean of an edit's ratings, none above the first; besides, the first one and the mean of what was written.
        Raises Unreadable."""
        values = self._values(completion, list(criteria.ratings))
        written = [self._rescaled(value) for value in values.values()]
        counted = [self._rescaled(value) for value in capped(values)]
        return {"score": fmean(counted), "instruction": written[0], "uncapped": fmean(written)}

    def _values(self, completion: Completion, names: Sequence[str]) -> dict[str, float]:
        """Each rating on the scale, as it was written or expected. Raises Unreadable."""
        content, values = completion.content, {}
        if len(content) > _MOST_ANSWER:
            raise Unreadable(f"the judge's answer has {len(content)} characters, {_MOST_ANSWER} at most are read")
        start = start_of_answer(content)
        for name in last_first(content[start:], names):
            rating = self._read(content[start:], name, names).moved(start)
            values[name] = rating.value
            if self.expectation is not False:
                expected = None if completion.tokens is None else expected_rating(rating, completion, self.scale)
                if expected is None and self.expectation:
                    raise Unreadable(f"the server returned no log-probabilities for the judge's {name}")
                values[name] = rating.value if expected is None else expected
        return {name: values[name] for name in names}

    def _read(self, answer: str, name: str, names: Sequence[str]) -> Rating:
        if self.parser == "json":
            return read_json_rating(answer, name, self.scale)
        if self.pattern is not None:
            return read_pattern(answer, self.pattern, self.scale, name)
        answer = plain(answer)
        bare = read_bare(answer, self.scale, name) if len(names) == 1 else None
        return bare or read_labelled(answer, name, self.scale, [other for other in names if other != name])

    def _rescaled(self, value: float) -> float:
        low, high = self.scale
        if self.rescale == "range":
            return (value - low) / (high - low)
        return value / high if self.rescale == "max" else value

    def _body(self, question: str, pictures: Sequence[Image.Image], logprobs: Mapping[str, Any]) -> bytes:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in pictures]
        content.append({"type": "text", "text": question})
        messages = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return json.dumps({"model": self.model, "messages": messages, **logprobs, **self._settings}).encode()


def _url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_image(image)).decode("ascii")


def _checked_scale(scale: Sequence[float]) -> tuple[float, float]:
    if len(scale) != 2 or not -1e9 < scale[0] < scale[1] < 1e9:
        raise UserError(f"scale is {list(scale)}; [lowest, highest] is needed.")
    return float(scale[0]), float(scale[1])


def _checked_ratings(ratings: Mapping[str, float]) -> dict[str, float]:
    for name, weight in ratings.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool) and abs(weight) < 1e9
        if not number or not isinstance(name, str) or not name.strip():
            raise UserError(f"ratings has {name!r}: {weight!r}; a name and its weight, a number, are needed.")
    if not ratings:
        raise UserError("ratings is empty; at least one name with its weight is needed.")
    return {name: float(weight) for name, weight in ratings.items()}


def _checked_pattern(pattern: str | None, parser: str, ratings: Mapping[str, float]) -> str | None:
    if pattern is None:
        return None
    if parser != "text" or len(ratings) != 1:
        raise UserError("pattern is for parser text and a single rating.")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is not a regular expression: {error}.") from error
    if groups < 1:
        raise UserError(f"pattern {pattern!r} has no group; put the number in parentheses.")
    return pattern


def _models(answer: bytes) -> list[str]:
    """The ids of GET /models; none where the answer is something else."""
    try:
        return [str(model["id"]) for model in json.loads(answer)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
