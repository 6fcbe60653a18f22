"""Credit assignment: which bits of a drawing its score is put down to."""

import torch
from torch import Tensor

from rl.algorithm.bernoulli import total_variation
from rl.algorithm.guidance import Gaps, GuidanceSettings

MOST = 32.0
"""The most credit of a bit. If one of an image's 256 visual tokens had all the credit, its bits would have √256 = 16;
this is twice that."""


def prompt_credit(drawn: Gaps, guidance: GuidanceSettings) -> Tensor:
    """What the advantage of each bit is multiplied by: more where the prompt changes what is drawn.

    With c = |σ(d_c) − σ(d_u)|, how far the prompt moves the probability of a bit, and C the sum of c over the bits of
    its visual token, a bit's credit is √(c·C). Texture that the prompt says nothing about is drawn at random all the
    same, and its part of the gradient is noise. Over a bit's own gap the gradient keeps its sign; over weights, which
    bits share, it is not that of the expected reward. After the idea of 2605.29198, which weights tokens.

    Scaled per image so that Σ credit²·p(1 − p) = Σ p(1 − p), p being the probability that a bit was drawn from: the
    expected square of the gradient over an image's gaps stays, on policy, what it is without credit, and learning rate,
    clipping and the weight of the KL term stay near their meaning. An image of which the prompt changes nothing has
    credit 1.

    No bit has more than `MOST`. Without a bound, an image of 262,144 bits of which the prompt changes 8 (from a gap of
    0 to one of 1.5, 4 or 8) and moves no other would give them credit 200, 900 and 10,000, and where the last is drawn
    against the odds, one bit has 50 times the gradient that is usual for the image. Such an image has less than the
    square above. UniAR-Tiny does not meet the bound: at most 4.7 in 256 drawings of the quickstart's first updates, 4.1
    in 64 of a trained policy.

    drawn: raw gaps of the policy that drew, both branches, (B, T, L, S, K). Returned: the same shape in float32, not
    negative, without gradient. Raises ValueError for a missing branch.
    """
    if drawn.uncond is None:
        raise ValueError("credit by the prompt needs the gaps of the unconditional branch.")
    with torch.no_grad():
        conditional, unconditional = drawn.cond.float(), drawn.uncond.float()
        changed = total_variation(conditional, unconditional)
        of_token = changed.flatten(2).sum(2).view(*changed.shape[:2], *[1] * (changed.ndim - 2))
        credit = (changed * of_token).sqrt()
        gap = guidance.drawn_gap(Gaps(conditional, unconditional))
        variance = gap.sigmoid() * (-gap).sigmoid()
        weighted = _per_image(credit.square() * variance)
        scale = (_per_image(variance) / weighted.clamp(min=torch.finfo(weighted.dtype).tiny)).sqrt()
        return torch.where(weighted > 0, (credit * scale).clamp(max=MOST), 1.0)


def _per_image(values: Tensor) -> Tensor:
    """(B, …) → (B, 1, …) sums."""
    return values.sum(tuple(range(1, values.ndim)), keepdim=True)
