"""Lets the package index's torchvision import beside a CPU-only torch.

That torchvision is built against CUDA torch. Beside a CPU-only torch its compiled library cannot load, and
`import torchvision` stops at "operator torchvision::nms does not exist", taking transformers' processors, TRL, peft,
diffusers and open_clip with it. Declaring the schemas of the two operators that torchvision's Python code refers to is
enough for the import; calling one still raises, because there is no kernel behind it.

A torch with CUDA, or a torchvision whose own operators load, is left alone.
"""

import sys

import torch

_MISSING_OPERATOR = "operator torchvision::"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # keeps the declared schemas alive for the life of the process


def ensure_torchvision_imports() -> bool:
    """Makes `import torchvision` work. Returns whether operator schemas had to be declared."""
    global _library
    if _library is not None or torch.version.cuda is not None:
        return _library is not None
    try:
        import torchvision
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
    else:
        return False
    # The failed import leaves torchvision's submodules behind, half initialised.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    import torchvision  # noqa: F401

    return True
