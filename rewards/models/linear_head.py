"""The score head that LAION's aesthetic predictor and ImageReward share: five linear layers, nothing between them."""

import torch
from torch import nn


class LinearHead(nn.Module):
    """(B, features) → (B,). No activations: the published heads have none. Dropouts keep the published names."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return self.layers(features_BD)[:, 0]
