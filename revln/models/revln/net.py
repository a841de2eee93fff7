"""The networks of a revln model together, as they are trained and saved."""

from __future__ import annotations

from torch import nn

from revln.models.revln.card import RevlnConfig
from revln.models.revln.decoder import Captioner
from revln.models.revln.image_cnn import ImageEncoder
from revln.models.revln.text_gru import TextEncoder
from revln.models.revln.trunks import CHANNELS

__all__ = ["RevlnNet"]


class RevlnNet(nn.Module):
    """The three networks, as trained and as saved."""

    def __init__(self, config: RevlnConfig) -> None:
        super().__init__()
        self.image = ImageEncoder(config.trunk, config.dim, config.pool_heads)
        self.text = TextEncoder(config.vocab_size, config.text_embedding, config.text_hidden, config.dim)
        self.captioner = Captioner(
            channels=CHANNELS,
            places=config.places,
            vocab_size=config.vocab_size,
            positions=config.caption_positions,
            width=config.caption_width,
            layers=config.caption_layers,
            heads=config.caption_heads,
            inner=config.caption_inner,
            dim=config.dim,
            vector_tokens=config.caption_vector_tokens,
        )
