"""A disk without room, for tests of what writes."""

import resource
from contextlib import contextmanager


@contextmanager
def files_no_larger_than(size: int):
    """As on a full disk, writes fail; any user may set it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
