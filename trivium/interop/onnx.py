"""Export to ONNX, and run the exported graphs with ONNX Runtime.

    to_onnx("runs/numbers", "numbers-onnx")
    model = OnnxModel.from_pretrained("numbers-onnx")
    translations = translate(model, model.tokenizer, ["twenty-one"], num_beams=5)

`torch.onnx.export` traces the graphs in float32, with dynamic batch and sequence dimensions:

    model.onnx      encoder-only: maps the model's inputs to logits or hidden states
    encoder.onnx    encoder-decoder: maps the source to the cross-attention keys and values, `memory.*`
    decoder.onnx    one decoding step of one or more tokens: takes the KV cache, `past_key_values.*`, of length 0 in
                    the first step, and returns the extended one, `present.*`; `logits_to_keep` are the positions to
                    compute logits for

The folder also holds the configuration, generation settings and tokenizer. `to_onnx(..., quantization="int8")` writes
the weights of the graphs in 8 bits.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput, Seq2SeqLMOutput
from transformers.utils.deprecation import deprecate_kwarg

from trivium.configuration import TriviumConfig
from trivium.interop.onnx_export import (
    DECODER,
    ENCODER,
    MODEL,
    OUTPUTS,
    Tensors,
    cache_names,
    require_onnx,
    to_onnx,
    zero_pairs,
)
from trivium.modeling.cache import self_attention_cache

__all__ = ["OnnxEncoder", "OnnxForCausalLM", "OnnxForConditionalGeneration", "OnnxModel", "to_onnx"]


class OnnxModel(PreTrainedModel):
    """Exported model, run by ONNX Runtime on the CPU with torch's number of threads; inference only.

    `OnnxModel.from_pretrained` returns an `OnnxForConditionalGeneration`, an `OnnxForCausalLM` or an `OnnxEncoder`.
    It is a drop-in replacement for the exported model in `forward`, `generate`, `trivium.translation.translate`,
    pipelines and commands.

    Args:
        folder: Output folder of `to_onnx`.

    Attributes:
        tokenizer: Tokenizer of the model.

    Raises:
        FileNotFoundError: `folder` is not an exported model of this class.
        ImportError: onnxruntime is not installed.
    """

    config_class = TriviumConfig
    device, dtype = torch.device("cpu"), torch.float32
    graphs: tuple[str, ...]

    def __init__(self, folder: str | Path) -> None:
        runtime, folder = require_onnx("onnxruntime"), Path(folder)
        for name in ("config.json", *self.graphs):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is not a model exported to ONNX: it has no {name}.")
        config = TriviumConfig.from_json_file(folder / "config.json")
        config.sliding_window = None  # the graphs apply the window in their masks and take the whole cache
        super().__init__(config)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config, trust_remote_code=False)
        if self.can_generate():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        self.sessions = {name: runtime.InferenceSession(folder / name, options, providers) for name in self.graphs}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "OnnxModel":
        """Load an exported model, or a saved Trivium model, which is exported to a temporary folder first.

        Args:
            folder: Folder of an exported or a saved model.
        """
        folder = Path(folder)
        if not any(folder.glob("*.onnx")):
            with TemporaryDirectory() as temporary:  # the engine does not read the files after loading
                to_onnx(folder, Path(temporary) / "exported")
                return cls.from_pretrained(Path(temporary) / "exported")
        kind: type[OnnxModel] = OnnxEncoder if (folder / MODEL).is_file() else OnnxForCausalLM
        return (OnnxForConditionalGeneration if (folder / ENCODER).is_file() else kind)(folder)

    def _run(self, graph: str, inputs: Tensors) -> Tensors:
        session = self.sessions[graph]
        arrays = session.run(None, {name: tensor.numpy(force=True) for name, tensor in inputs.items()})
        names = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    def _step(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        logits_to_keep: int | torch.Tensor,
        source: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the logits of the new tokens, and append their keys and values to the cache."""
        own: Any = self_attention_cache(cache)
        batch, length = input_ids.shape
        past_length = 0 if own is None else own.get_seq_length()
        self._check_length(past_length + length)
        pairs = (
            [(layer.keys, layer.values) for layer in own.layers] if past_length else zero_pairs(self.config, batch, 0)
        )
        past = zip(cache_names("past_key_values", self.config), chain.from_iterable(pairs), strict=True)
        if isinstance(logits_to_keep, int):
            logits_to_keep = torch.arange(length)[-logits_to_keep:]
        mask = _or_ones(attention_mask, (batch, past_length + length))
        inputs = {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": logits_to_keep}
        outputs = self._run(DECODER, {**inputs, **dict(past), **source})
        for index in range(0 if own is None else self.config.decoder_layers):
            key, value = (outputs[f"present.{index}.{kind}"] for kind in ("key", "value"))
            if past_length:  # the outputs include the cached keys and values
                own.layers[index].keys, own.layers[index].values = key, value
            else:
                own.update(key, value, index)
        return outputs["logits"]

    def _new_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        if cache is None:
            return DynamicCache(config=self.config) if use_cache in (None, True) else None
        own: Any = self_attention_cache(cache)
        for kind in {type(layer) for layer in own.layers} - {DynamicLayer}:
            raise ValueError(
                f"cache has layers of class {kind.__name__}, but must be a DynamicCache: do not set "
                "cache_implementation."
            )
        return cache

    def _check_length(self, length: int) -> None:
        limit = self.config.max_position_embeddings
        if self.config.position_embedding_type == "learned" and length > limit:
            raise ValueError(
                f"The sequence has {length} tokens, but learned positions end at max_position_embeddings={limit}. "
                "Truncate it."
            )


class OnnxEncoder(OnnxModel):
    """Encoder-only model, with or without a head."""

    graphs = (MODEL,)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> ModelOutput:
        """Return the output of the head, or the hidden states without one; inputs are of shape (batch, length)."""
        self._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        if self.config.type_vocab_size:
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return OUTPUTS[self.config.architectures[0]](**self._run(MODEL, inputs))


class OnnxForCausalLM(OnnxModel, GenerationMixin):
    """Decoder-only model."""

    graphs = (DECODER,)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits for ids of shape (batch, length); see `TriviumForCausalLM.forward`."""
        cache = self._new_cache(cache, use_cache)
        logits = self._step(input_ids, attention_mask, cache, logits_to_keep, {})
        return CausalLMOutputWithPast(logits=logits, cache=cache)


class OnnxForConditionalGeneration(OnnxModel, GenerationMixin):
    """Encoder-decoder model."""

    graphs = (ENCODER, DECODER)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder, which `generate()` calls once per sequence."""
        return _EncoderSession(self)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        decoder_input_ids: torch.Tensor,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> Seq2SeqLMOutput:
        """Return next-token logits for ids of shape (batch, target_len).

        See `TriviumForConditionalGeneration.forward`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        cache = self._new_cache(cache, use_cache)
        source = next(iter(encoder_outputs.values()))  # (batch, heads, source_len, head_dim)
        memory = {"encoder_attention_mask": _or_ones(attention_mask, source.shape[::2]), **encoder_outputs}
        logits = self._step(decoder_input_ids, decoder_attention_mask, cache, logits_to_keep, memory)
        return Seq2SeqLMOutput(logits=logits, cache=cache)


class _EncoderSession(nn.Module):
    def __init__(self, model: OnnxForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Map ids of shape (batch, source_len) to cross-attention keys and values, which beam search expands."""
        self.model._check_length(input_ids.shape[1])
        inputs = {"input_ids": input_ids, "attention_mask": _or_ones(attention_mask, input_ids.shape)}
        return ModelOutput(self.model._run(ENCODER, inputs))


def _or_ones(mask: torch.Tensor | None, shape: Iterable[int]) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long) if mask is None else mask.long()
