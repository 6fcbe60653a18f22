"""Quotations in a prompt: which words it wants to see, in whatever marks people write them in.

The marks are also those of inches, feet and apostrophes. What cannot be told apart is not taken for a quotation: no
target is better than a wrong one.
"""

import re
import unicodedata

_CLOSERS = {"“": "”", "„": "“”‟", "«": "»", "‹": "›", "「": "」", "『": "』", "‘": "’", "‚": "‘’"}
_REVERSED = {"»": "«", "›": "‹"}  # as German and Danish have them
_ALL_CLOSERS = set("".join(_CLOSERS.values()))
# Marks that are escaped, doubled or spelt otherwise.
_SPELLINGS = (
    (re.compile(r"&quot;|&#0*34;|＂|``(?=\S)|''|\\+\""), '"'),
    (re.compile(r"&apos;|&#0*39;|\\+'"), "'"),
    (re.compile(r'""+(?=\w)|(?<=\w)""+'), '"'),
)
_CONTRACTED = re.compile(
    r"(?i)['’](?:n['’]|(?:\d\ds?|tis|twas|til|em|cause|cos|bout|round)\b(?!['’]))"
)  # '90s, rock 'n' roll
_BRACKETS = "([{<—–:=/"


def quoted_texts(prompt: str) -> list[str]:
    """The texts between quotation marks ("…", '…', “…”, ‘…’, 「…」, 『…』, «…», „…“), in order; of quotations in a
    quotation the outer one. None where the marks do not make pairs. Where all of the prompt is one quotation, it is the
    prompt that is quoted, and what counts is quoted in it."""
    text = prompt
    for spelling, plain in _SPELLINGS:
        text = spelling.sub(plain, text)
    spans = _doubles(text)
    if spans is None:
        return []
    spans = _outermost(spans + _singles(text, spans))
    core = text.strip().rstrip(".,;!? ")
    begin = len(text) - len(text.lstrip())
    if spans and spans[0][0] == begin and spans[0][1] >= begin + len(core):
        return quoted_texts(text[spans[0][0] + 1 : spans[0][1] - 1])
    return [text[start + 1 : end - 1] for start, end in spans if text[start + 1 : end - 1].strip()]


def _doubles(text: str) -> list[tuple[int, int]] | None:
    """From the opening mark to behind the closing one, of all marks but the single ones; None where some are left."""
    spans: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []  # what closes it, and where it is
    for place, mark in enumerate(text):
        before, blank_after = text[place - 1 : place], _blank(text, place + 1)
        closers = opened[-1][0] if opened else ""
        if mark == '"':
            # In an open quotation another one opens only where the mark could not be the closing one.
            inner = (_blank(text, place - 1) or before in _BRACKETS) and not blank_after
            if closers == '"' and not inner:
                spans.append((opened.pop()[1], place + 1))
            elif inner or (not before.isdigit() and not blank_after) or (_blank(text, place - 1) and text[place + 1 :]):
                opened.append(('"', place))
            elif not before.isdigit():  # else inches
                return None
        elif mark in closers:
            spans.append((opened.pop()[1], place + 1))
        elif mark in _CLOSERS and mark not in "‘‚":
            opened.append((_CLOSERS[mark], place))
        elif mark in _REVERSED and not _joins(text, place - 1) and _joins(text, place + 1):
            opened.append((_REVERSED[mark], place))
        elif mark in _ALL_CLOSERS and mark not in "’‘":
            return None
    return None if opened else spans


def _singles(text: str, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same of single marks outside other quotations; those that are left are apostrophes, or feet. None of them
    where a plural's apostrophe may as well be the closing mark."""
    inside = {place for start, end in taken for place in range(start, end)}
    marks = [(place, mark) for place, mark in enumerate(text) if mark in "'‘’‚" and place not in inside]
    passed = {place for place, _ in marks if _joins(text, place - 1) and _joins(text, place + 1)}
    for place, _ in marks:
        if not _joins(text, place - 1) and (contracted := _CONTRACTED.match(text, place)):
            passed |= {place, contracted.end() - 1}
    quotations: list[tuple[int, str, list[int]]] = []  # where each opens, with what mark, and what may close it
    for place, mark in marks:
        opens = mark != "’" and not _joins(text, place - 1) and not _blank(text, place + 1)
        closes = bool(quotations) and mark in (_CLOSERS.get(quotations[-1][1], "'")) and not _blank(text, place - 1)
        if place in passed:
            continue
        if opens and not (closes and text[place - 1] not in _BRACKETS):
            quotations.append((place, mark, []))
        elif closes:
            quotations[-1][2].append(place)
    closed = [(start, ends) for start, _, ends in quotations if ends]
    if any(len(ends) > 1 and text[ends[0] - 1] in "sS" for _, ends in closed):
        return []
    return [(start, ends[0] + 1) for start, ends in closed]


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def _joins(text: str, place: int) -> bool:
    """Whether the character belongs to a word that is set off by spaces: Chinese and Japanese are not."""
    character = text[place : place + 1] if place >= 0 else ""
    return character.isalnum() and unicodedata.east_asian_width(character) not in "WF"


def _blank(text: str, place: int) -> bool:
    return place < 0 or not text[place : place + 1].strip()
