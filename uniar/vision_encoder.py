"""UniAR's own name of the image tokenizer's package; everything lives in `uniar.modeling_vision` and `quantizer`."""

from uniar.configuration_uniar import UniARVisionConfig
from uniar.modeling_vision import UniARVisionModel
from uniar.quantizer import BinarySphericalQuantizer

__all__ = ["BinarySphericalQuantizer", "UniARVisionConfig", "UniARVisionModel"]
