"""Usage reports of the libraries underneath: off, unless the user has asked for one in the environment."""

import os
import sys

SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and by it transformers, diffusers, datasets, TRL and gradio
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",  # to Sentry, beside what `report_to: wandb` asks for
}
"""environment variable → its value where the environment has none"""


def switch_off() -> None:
    """Sets the switches; for processes that this one starts as well."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # huggingface_hub reads its variable once, which a program that imports transformers first has behind it.
    read = sys.modules.get("huggingface_hub.constants")
    if read is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"] == SWITCHES["HF_HUB_DISABLE_TELEMETRY"]:
        read.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]  # a module that may not be imported here
