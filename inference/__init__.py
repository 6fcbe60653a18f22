"""The import path that UniAR's own README shows; everything lives in `uniar`."""

import uniar  # noqa: F401  (makes torchvision importable before transformers is)
