"""The parts of a Stable Diffusion, of a size for tests."""

from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.clip_text import ClipText

TINY_AUTOENCODER = AutoencoderKl(
    {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 8,
    }
)
"""8×8×3 to 4×4×4; 12,000 parameters."""

TINY_CLIP = ClipText(
    {
        "vocab_size": 514,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
)
"""77 tokens, each a byte, of width 16; 14,000 parameters."""
