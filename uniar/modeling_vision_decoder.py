"""UniAR's own name of the visual decoder's module; everything lives in `uniar.modeling_decoder` and `modeling_sd3`."""

from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP

__all__ = ["SD3Transformer2DModelWithSigLIP", "UniARVisualDecoder"]
