"""Streaming of generated tokens."""

import torch
from transformers.generation.streamers import BaseStreamer


class PromptStreamer(BaseStreamer):
    """Forward the tokens of `generate()` to a streamer, with each prompt once instead of once per beam.

    Args:
        streamer: Receives prompts, (batch, prompt_len), then the next tokens, (batch,), until it is ended.
    """

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer
        self.num_beams = 1

    def put(self, value: torch.Tensor) -> None:
        """Forward prompts, (batch * num_beams, prompt_len), or the next tokens, (batch,)."""
        self.streamer.put(value[:: self.num_beams] if value.ndim == 2 else value)

    def end(self) -> None:
        """Signal the end of the generation."""
        self.streamer.end()
