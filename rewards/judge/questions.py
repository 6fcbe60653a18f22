"""`judge_questions`: a prompt's own questions, asked of a judge one by one; the share that it answers with yes."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.judge.answers import plain
from rewards.judge.completion import Unreadable, read_completion, start_of_answer
from rewards.judge.presets import QUESTION
from rewards.judge.vlm_judge import VLMJudge
from rewards.remote.servers import ServerError
from uniar.errors import UserError

KEY = "questions"
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question that a faithful image answers with yes."""

    id: str
    text: str
    after: tuple[str, ...] = ()
    """the questions that it makes no sense without"""


class JudgeQuestions(VLMJudge):
    """The share of the questions in the sample's metadata that a judge, who sees the image, answers with yes, 0 to 1. A
    question that rests on another which was answered with no counts as no, as in Davidsonian Scene Graphs (Cho et al.
    2023, arXiv 2310.18235) and DPG-Bench. A sample without questions has no score; one of which a question has neither
    yes nor no for an answer fails. Details: `answers`, by the question's id; the first that is no.

    The metadata is `questions`: a list of questions, or of mappings with `question`, and where others rest on it an
    `id`, which these name in the list `after`.

    Args:
        url: the API's base, such as http://127.0.0.1:8000/v1; or a list of servers with the same model.
        model: the name it is served under; null where each server has just one.
        system: a system message; null for none.
        max_tokens: that the judge may write.
        temperature: at which it writes.
        extra: more entries for the request's body, such as chat_template_kwargs.
        deadline: seconds after which whatever has no answer yet has failed.
        timeout: seconds for one request.
        attempts: of one request that fail, over all servers; while servers are busy it waits for the deadline instead.
        concurrency: requests in flight at a time, per server.
        token_env: environment variable with the API's key; null for none.

    Raises UserError for parameters that cannot work and questions of another form; at load, where no server can be
    reached or has the model.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
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
            system=system,
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

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        questions_of(metadata)

    async def _score_sample(self, sample: RewardBatch, deadline: float) -> Any:
        try:
            questions = questions_of(sample.metadata[0])
            asked = [self._answer(question.text, list(filter(None, sample.images)), deadline) for question in questions]
            given = dict(zip((question.id for question in questions), await asyncio.gather(*asked), strict=True))
        except (ServerError, Unreadable, UserError) as error:
            return error
        if not questions:
            return None
        right = [given[question.id] and all(given[other] for other in question.after) for question in questions]
        wrong = next((question.text for question, yes in zip(questions, right, strict=True) if not yes), None)
        why = "all yes" if wrong is None else f"no: {wrong}"
        return {"score": sum(right) / len(right), "answers": given, "why": why}

    async def _answer(self, question: str, pictures: Sequence[Image.Image], deadline: float) -> bool:
        """Whether it is yes. Raises ServerError, and Unreadable for neither yes nor no."""
        completion = read_completion(await self._ask(QUESTION.format(question=question), pictures, deadline))
        answer = plain(completion.content[start_of_answer(completion.content) :])
        if (found := _ANSWER.match(answer)) is None:
            raise Unreadable(f"the judge's answer to {question!r} begins with neither yes nor no: {answer[:100]!r}")
        return found[1].lower() == "yes"


def questions_of(metadata: Mapping[str, Any]) -> list[Question]:
    """None without the key. Raises UserError for another form, and where one rests on a question that is not there."""
    listed = metadata.get(KEY)
    if listed is None:
        return []
    if not isinstance(listed, list | tuple):
        raise UserError(f"metadata {KEY!r} is {listed!r}; a list of questions is needed.")
    found = [_question(one, place) for place, one in enumerate(listed, start=1)]
    known = {question.id for question in found}
    if len(known) < len(found):
        raise UserError(f"metadata {KEY!r} gives an id twice.")
    for question in found:
        if missing := [other for other in question.after if other not in known]:
            raise UserError(f"the question {question.text!r} rests on {missing[0]!r}, which no question is called.")
    return found


def _question(entry: Any, place: int) -> Question:
    said = {"question": entry} if isinstance(entry, str) else entry
    text = said.get("question") if isinstance(said, Mapping) else None
    after = said.get("after") or () if isinstance(said, Mapping) else ()
    if not isinstance(text, str) or not text.strip() or isinstance(after, str):
        raise UserError(f"metadata {KEY!r} has {entry!r}; a question, or a mapping with a 'question', is needed.")
    return Question(str(said.get("id", place)), text, tuple(map(str, after)))
