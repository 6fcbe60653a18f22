"""The preset `small`, whose rollout's cost has the shape of the released model's: 512×512 pixels are 256 tokens."""

from uniar.presets.build import PRESETS, DecoderSize, Preset

PRESETS["small"] = SMALL = Preset(
    image_size=256,
    vocabulary=512,
    text_hidden=256,
    text_layers=8,
    text_heads=8,
    key_value_heads=4,
    visual_decoder_depth=4,
    patch_size=16,
    vision_hidden=96,
    vision_depth=6,
    deepstack=(1, 3, 4),
    bsq_dim=16,
    bsq_hidden=192,
    decoder=DecoderSize(
        layers=4,
        heads=4,
        head_dim=16,
        latent_channels=8,
        vae_channels=(16, 32, 32, 32),
        joint_dim=64,
        max_side=64,
    ),
)
