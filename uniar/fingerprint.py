"""Weights told apart without reading whole files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_PIECES = 256
_PIECE_BYTES = 4096


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """16 hex digits made of the size of each file, by its path from `folder`, and of 256 pieces spread evenly over it:
    other weights of the same shapes give others."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}:{size}".encode())
        with file.open("rb") as weights:
            for piece in range(_PIECES):
                weights.seek(piece * size // _PIECES)
                digest.update(weights.read(min(_PIECE_BYTES, -(-size // _PIECES))))
    return digest.hexdigest()[:16]
