"""How a policy draws that a KL term measures from: the reference of a run, or an expert of distillation."""

import dataclasses

from rl.algorithm.guidance import GuidanceSettings
from uniar.reading.settings import setting

LEAST_TEMPERATURE = 1e-3
"""Gaps divided by less, and what is computed of them, leave the range of float32."""


@dataclasses.dataclass(frozen=True)
class MeasuredFrom:
    """Guidance and temperature of its own, where they are not those of rollouts. Of pictures alone: what samples write
    is measured at rollout.text_temperature."""

    guidance_scale: float | None = setting(
        "Strength of classifier-free guidance in this policy; 1: none, null: as rollouts have it.",
        None,
        ge=1,
        le=1000,
    )
    temperature: float | None = setting(
        "Temperature of this policy's bits; null: rollout.temperature.", None, ge=LEAST_TEMPERATURE
    )

    def guidance(self, rollout: GuidanceSettings) -> GuidanceSettings:
        """What makes this policy of its raw gaps. rollout: the same of the policy that is trained."""
        found = dataclasses.replace(rollout, temperature=self.temperature or rollout.temperature)
        if self.guidance_scale is None:
            return found
        return dataclasses.replace(
            found, name="none" if self.guidance_scale == 1 else "guided", scale=self.guidance_scale
        )
