"""Which machine a process is on, as far as numbers of processes go."""

import os
import re
import socket


def machine() -> str:
    """The same for processes that can see each other by number, and a part of a file's name: the host, and the
    namespace of the numbers, as a container may have numbers of its own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', socket.gethostname())}-{re.sub(r'[^0-9]', '', namespace) or 0}"
