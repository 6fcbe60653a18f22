"""Samples as rows of a Parquet file: what was asked for, how it scored, and the picture. One schema for the samples of
evaluations and for those of training.

    pandas.read_parquet("runs/quickstart/evaluations/step-000150.parquet")
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rewards import RewardTable
from rl.data.prompts import PromptRecord
from rl.data.questions import QuestionRecord
from rl.policy.completion import Completion
from rl.policy.samples import DrawSettings, Sample
from uniar.errors import UserError
from uniar.reading.files import reason_of, write_whole
from uniar.reading.pictures import load_picture
from uniar.shareable import shareable

PREFIX = "rewards/"
"""before the name of a reward, in the name of its column"""
PICTURE_SIZE = 256
QUALITY = 90

COLUMNS = {
    "step": pa.int64(),
    "id": pa.string(),
    "sample": pa.int64(),
    "prompt": pa.string(),
    "task": pa.string(),
    "tag": pa.string(),
    "set": pa.string(),
    "episode": pa.string(),
    "texts": pa.list_(pa.string()),
    "total": pa.float64(),
    "advantage": pa.float64(),
    "details": pa.string(),
    "seed": pa.int64(),
    "picture": pa.binary(),
    "source": pa.binary(),
}
"""The columns besides the rewards'. `sample` numbers the samples of a prompt; `set` is the name of the held-out set, or
null; `texts` is what a sample wrote, turn by turn; `advantage` is null but in training; `details` is JSON, the reward's
name → what it says besides its score; `seed` is that of the noise the bits were drawn from; `picture` is the content of
a WebP file, or null where nothing was drawn or kept; `source` likewise of the picture that the prompt edits or asks
about. `set`, `texts` and `source` are null in files of versions before they were kept."""
PICTURES = ("picture", "source")
"""the columns that hold WebP files"""


QUESTION_COLUMNS = {"question": pa.string(), "answer": pa.string(), "picture": pa.binary()}


def sample_rows(
    samples: Sequence[Sample],
    settings: DrawSettings,
    scores: RewardTable,
    totals: Sequence[float],
    pictures: Sequence[bytes | None],
    made: Sequence[Completion] | None = None,
    *,
    sources: Sequence[bytes | None] | None = None,
    step: int = 0,
    advantages: Sequence[float] | None = None,
    held_out_set: str | None = None,
) -> pa.Table:
    """B samples, in their order, as rows. scores: of B samples under R rewards. made: what they made; None where all
    drew and wrote nothing. sources: as `sources_of` gives them; None where none is kept. step: that the noise was
    seeded with. Scores that are missing are null."""
    made = [Completion(None)] * len(samples) if made is None else made
    columns: dict[str, list[Any]] = {
        "step": [step] * len(samples),
        "id": [sample.record.id for sample in samples],
        "sample": [sample.index for sample in samples],
        "prompt": [sample.record.prompt for sample in samples],
        "task": [sample.record.task for sample in samples],
        "tag": [sample.record.tag for sample in samples],
        "set": [held_out_set] * len(samples),
        "episode": [one.episode for one in made],
        "texts": [list(one.texts) for one in made],
        "total": [_number(total) for total in totals],
        "advantage": [None] * len(samples) if advantages is None else [_number(one) for one in advantages],
        "details": [
            _json({name: said[row] for name, said in scores.details.items() if said[row]})
            for row in range(len(samples))
        ],
        "seed": [settings.bits_seed(sample, step) for sample in samples],
        "picture": list(pictures),
        "source": [None] * len(samples) if sources is None else list(sources),
    }
    rewards = {f"{PREFIX}{name}": [_number(score) for score in scores.column(name).tolist()] for name in scores.names}
    kinds = COLUMNS | dict.fromkeys(rewards, pa.float64())
    found = columns | rewards
    return pa.table([pa.array(found[name], kind) for name, kind in kinds.items()], names=list(kinds))


def write_rows(path: Path, rows: pa.Table, step: int) -> None:
    """Writes the rows of `step` whole or not at all. Raises OSError as writing does."""
    place = rows.schema.get_field_index("step")
    write_table(path, rows.set_column(place, "step", pa.array([step] * len(rows), pa.int64())))


def write_table(path: Path, rows: pa.Table) -> None:
    """Writes a table whole or not at all. Raises OSError as writing does."""
    content = io.BytesIO()
    # Pictures are compressed already; the samples of a prompt share their source, which a dictionary keeps once.
    compression = {name: "NONE" if name in PICTURES else "ZSTD" for name in rows.column_names}
    shared = [name for name in rows.column_names if name == "source"]
    pq.write_table(rows, content, compression=compression, use_dictionary=shared, dictionary_pagesize_limit=2**28)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, content.getvalue())


def question_rows(questions: Sequence[QuestionRecord], picture_size: int | None = PICTURE_SIZE) -> pa.Table:
    """Held-out questions as rows: question, answer, picture."""
    columns = {
        "question": [record.question for record in questions],
        "answer": [record.answer for record in questions],
        "picture": [picture_of(record.load_image(), picture_size) for record in questions],
    }
    return pa.table({name: pa.array(column, QUESTION_COLUMNS[name]) for name, column in columns.items()})


def read_rows(path: Path, columns: Mapping[str, pa.DataType] = COLUMNS, *, pictures: bool = True) -> pa.Table:
    """The rows of such a file. columns: that it must have; `set`, `texts` and `source` are added where they are
    missing. pictures: whether they are read too. Raises UserError for anything else."""
    try:
        named = None if pictures else [name for name in pq.read_schema(path).names if name not in PICTURES]
        rows = pq.read_table(path, columns=named, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"the rows '{path}' do not exist.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"the rows '{path}' are not a whole Parquet file: {reason_of(error)}.") from error
    for name in ("set", "texts", "source"):
        if name in columns and name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), COLUMNS[name]))
    for name, kind in columns.items():
        if name in PICTURES and not pictures:
            continue
        found = rows.schema.field(name).type if name in rows.column_names else None
        if found != kind:
            raise UserError(f"the rows '{path}' have the column '{name}' as {found or 'none'}; expected {kind}.")
    return rows


def reward_names(rows: pa.Table) -> list[str]:
    """The rewards that rows have scores of."""
    return [name.removeprefix(PREFIX) for name in rows.column_names if name.startswith(PREFIX)]


def source_of(record: PromptRecord) -> Image.Image | None:
    """The picture that a prompt edits or asks about, to be looked at. None too where it has been moved since it was
    used, which is no reason to end a run."""
    try:
        return record.load_image()
    except UserError:
        return None


def sources_of(samples: Sequence[Sample], longest: int | None) -> list[bytes | None]:
    """The content of a WebP file per sample, of `source_of` its prompt; None without. longest: as of `picture_of`."""
    if longest == 0:
        return [None] * len(samples)
    records = {sample.record.id: sample.record for sample in samples}
    found = {key: picture_of(source_of(record), longest) for key, record in records.items()}
    return [found[sample.record.id] for sample in samples]


def picture_of(image: Image.Image | None, longest: int | None = PICTURE_SIZE) -> bytes | None:
    """The content of a WebP file; None of no image. longest: of its sides, in pixels; 0: None, None: as large as it
    is."""
    if image is None or longest == 0:
        return None
    if longest is not None and max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return encoded(image, QUALITY)


def encoded(image: Image.Image, quality: int, effort: int = 4) -> bytes:
    """The content of a WebP file. effort: of 6, to make it small."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format="WEBP", quality=quality, method=effort)
    return content.getvalue()


def load_stored(picture: bytes) -> Image.Image:
    """The picture of a row. Raises UserError for what is not one."""
    return load_picture(picture, "the picture of a row")


def said_of(details: str | None) -> str:
    """What rewards say of one sample, as a line: their `why`, else all they say."""
    return "; ".join(f"{name}: {_sentence(said)}" for name, said in shared_details(details).items())


def shared_details(details: str | None) -> dict[str, Any]:
    """Reward → what it says of one sample, without the addresses, paths and keys that a judge's answer may hold."""
    return {name: shareable(said) for name, said in json.loads(details).items()} if details else {}


def _sentence(said: Mapping[str, Any]) -> str:
    return str(said["why"]) if "why" in said else ", ".join(f"{key} {value}" for key, value in said.items())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(said: Mapping[str, Any]) -> str | None:
    return json.dumps(said, ensure_ascii=False, default=str) if said else None
