"""UniAR: one autoregressive model that understands, generates and edits images through bitwise visual tokens.

The names below are those of UniAR's own package. Each is loaded at its first use, so that `import uniar` costs nothing;
transformers' Auto classes know UniAR from then on.

This room has many files because code written for UniAR's own package and the cards of checkpoints name their paths
(`uniar.modeling_uniar` and so on), and because the model's parts belong together.
"""

from typing import TYPE_CHECKING

from uniar.import_hooks import loaded_at_first_use
from uniar.telemetry import switch_off
from uniar.torchvision_compat import ensure_torchvision_imports

if TYPE_CHECKING:
    from uniar.configuration_uniar import UniARConfig, UniARVisionConfig
    from uniar.modeling_uniar import UniARForConditionalGeneration, UniARModel
    from uniar.modeling_vision import UniARVisionModel
    from uniar.modeling_vision_decoder import UniARVisualDecoder
    from uniar.presets.processor import CHAT_TEMPLATE

switch_off()  # before the libraries that send reports are imported
ensure_torchvision_imports()

_MODULES = {
    "CHAT_TEMPLATE": "uniar.presets.processor",
    "UniARConfig": "uniar.configuration_uniar",
    "UniARForConditionalGeneration": "uniar.modeling_uniar",
    "UniARModel": "uniar.modeling_uniar",
    "UniARVisionConfig": "uniar.configuration_uniar",
    "UniARVisionModel": "uniar.modeling_vision",
    "UniARVisualDecoder": "uniar.modeling_vision_decoder",
}

__all__ = [
    "CHAT_TEMPLATE",
    "UniARConfig",
    "UniARForConditionalGeneration",
    "UniARModel",
    "UniARVisionConfig",
    "UniARVisionModel",
    "UniARVisualDecoder",
]


__getattr__ = loaded_at_first_use(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
