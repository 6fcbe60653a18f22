"""Which machine a process is on, as far as numbers of processes go, and where its user keeps what can be made again."""

import os
import re
import socket
from pathlib import Path

CACHE_VARIABLE = "UNIAR_CACHE"
"""names the folder of presets, and of what else can be made again"""


def machine() -> str:
    """The same for processes that can see each other by number, and a part of a file's name: the host, and the
    namespace of the numbers, as a container may have numbers of its own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', socket.gethostname())}-{re.sub(r'[^0-9]', '', namespace) or 0}"


def cache_folder() -> Path | None:
    """$UNIAR_CACHE, else uniar-rl in the user's own cache folder; None for a user who has none."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uniar-rl"
    except RuntimeError:  # no home
        return None
