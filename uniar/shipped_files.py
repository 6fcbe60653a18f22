"""What comes with the package: recipes with their prompts and DeepSpeed files (configs/), and UniAR-Tiny.

In a clone uniar/shipped/ has links to those folders; an installed package has the files themselves there.
"""

import os
from pathlib import Path

SHIPPED = Path(__file__).with_name("shipped")
TINY = SHIPPED / "assets" / "uniar-tiny"
TINY_NAMES = ("tiny", "assets/uniar-tiny")
"""as a user may call it: the second is its place in a clone"""


def shipped(name: str) -> Path | None:
    """A file or folder by its name in a clone (configs/quickstart.yaml), or inside configs/ (quickstart.yaml)."""
    inside = Path(name)
    if inside.is_absolute() or ".." in inside.parts or not inside.parts:
        return None
    return next((found / inside for found in (SHIPPED, SHIPPED / "configs") if os.path.exists(found / inside)), None)


def shipped_model(name: str) -> Path | None:
    """UniAR-Tiny by one of its names, unless a checkpoint of that name is here."""
    here = os.path.isfile(os.path.join(name, "config.json"))
    return TINY if name.rstrip("/") in TINY_NAMES and not here else None
