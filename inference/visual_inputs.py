"""`from inference.visual_inputs import prepare_visual_inputs`, as in the model card."""

from uniar.processing import prepare_visual_inputs

__all__ = ["prepare_visual_inputs"]
