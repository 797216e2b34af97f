"""Comparable models of other implementations, and synthetic batches, for the benchmarks in this folder.

All models of an architecture have the same layers, width, heads, feed-forward width, vocabulary and tied embeddings;
a dropout of 0.1, except for Llama, which has none; and no attention dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM, preset_config

PAD, BOS, EOS, MASK = 0, 1, 2, 4
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Shape of a model: layers per stack, width, heads and feed-forward width."""

    layers: int
    d_model: int
    heads: int
    ffn_dim: int


SHAPES = {
    "tiny": Shape(4, 128, 4, 256),
    "small": Shape(3, 256, 4, 1024),
    "base": Shape(6, 512, 8, 2048),  # Transformer (base)
    "big": Shape(6, 1024, 16, 4096),
}


def trivium_fields(shape: Shape, vocabulary: int) -> dict[str, int]:
    """Return the Trivium configuration fields for a shape, except for the layers."""
    return {
        "vocab_size": vocabulary,
        "d_model": shape.d_model,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "ffn_dim": shape.ffn_dim,
    }


def encoder_decoders(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of translation models, all with three-way tied embeddings."""
    stacks = {
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (
            ("layers", shape.layers),
            ("attention_heads", shape.heads),
            ("ffn_dim", shape.ffn_dim),
        )
    }
    tokens = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
    common = {"vocab_size": vocabulary, "d_model": shape.d_model, "dropout": 0.1, **tokens}
    config = preset_config(
        "transformer-base",
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        label_smoothing=0.0,
        **{**common, **trivium_fields(shape, vocabulary)},
    )
    return {
        "Trivium": lambda: TriviumForConditionalGeneration(config),
        "MarianMTModel": lambda: MarianMTModel(MarianConfig(**stacks, **common)),
        "BartForConditionalGeneration": lambda: BartForConditionalGeneration(BartConfig(**stacks, **common)),
        "torch.nn.Transformer": lambda: TorchTransformer(shape, vocabulary),
        "x_transformers.XTransformer": lambda: XTransformerModel(shape, vocabulary),
    }


class TorchTransformer(nn.Module):
    """`nn.Transformer` with embeddings, learned positions, output projection and loss."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.d_model, padding_idx=PAD)
        self.positions = nn.Embedding(1024, shape.d_model)
        self.transformer = nn.Transformer(
            d_model=shape.d_model,
            nhead=shape.heads,
            num_encoder_layers=shape.layers,
            num_decoder_layers=shape.layers,
            dim_feedforward=shape.ffn_dim,
            batch_first=True,
        )
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Seq2SeqLMOutput:
        """Return the loss."""
        decoder_ids = F.pad(labels[:, :-1], (1, 0), value=BOS).clamp(min=PAD)
        source, target = (
            self.embedding(ids) + self.positions.weight[: ids.shape[1]] for ids in (input_ids, decoder_ids)
        )
        causal_mask = nn.Transformer.generate_square_subsequent_mask(decoder_ids.shape[1]).isinf()
        padding = attention_mask == 0
        states = self.transformer(
            source,
            target,
            tgt_mask=causal_mask,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        logits = states @ self.embedding.weight.T
        return Seq2SeqLMOutput(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


class XTransformerModel(nn.Module):
    """`XTransformer` with flash attention and the calling convention of transformers."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        from x_transformers import XTransformer  # only here: other benchmarks import this file without the package

        super().__init__()
        stack: dict[str, Any] = {
            "num_tokens": vocabulary,
            "depth": shape.layers,
            "heads": shape.heads,
            "max_seq_len": 1024,
            "attn_dim_head": shape.d_model // shape.heads,
            "attn_flash": True,
            "ff_mult": shape.ffn_dim / shape.d_model,
            "ff_dropout": 0.1,
            "emb_dropout": 0.1,
        }
        stacks = {f"{which}_{name}": value for which in ("enc", "dec") for name, value in stack.items()}
        self.model = XTransformer(dim=shape.d_model, tie_token_emb=True, ignore_index=-100, pad_value=PAD, **stacks)
        self.model.decoder.net.to_logits = Projection(self.model.encoder.token_emb.emb)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Seq2SeqLMOutput:
        """Return the loss."""
        target = F.pad(labels, (1, 0), value=BOS)
        return Seq2SeqLMOutput(loss=self.model(input_ids, target, mask=attention_mask.bool()))


class Projection(nn.Module):
    """Output projection tied to an embedding."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (..., d_model) to (..., vocabulary)."""
        return F.linear(states, self.embedding.weight)


def encoders(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of masked language models; Trivium has BERT's architecture."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_dim,
        "pad_token_id": PAD,
    }
    fields = {"encoder_layers": shape.layers, "attention_dropout": 0.0, **trivium_fields(shape, vocabulary)}
    bert = BertConfig(**common, attention_probs_dropout_prob=0.0)
    tokens = {"bos_token_id": BOS, "eos_token_id": EOS, "cls_token_id": BOS, "sep_token_id": EOS}
    modern = ModernBertConfig(**common, **tokens, embedding_dropout=0.1, mlp_dropout=0.1)
    return {
        "Trivium, like BERT": lambda: TriviumForMaskedLM(preset_config("bert-base", **fields)),
        "BertForMaskedLM": lambda: BertForMaskedLM(bert),
        "ModernBertForMaskedLM": lambda: ModernBertForMaskedLM(modern),
    }


def trivium_decoder_fields(shape: Shape, vocabulary: int) -> dict[str, Any]:
    """Return the Trivium configuration fields of a decoder-only model."""
    tokens = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return {"decoder_layers": shape.layers, "tie_word_embeddings": True, **tokens, **trivium_fields(shape, vocabulary)}


def decoders_like_gpt2(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of causal language models with GPT-2's architecture."""
    config = preset_config("gpt2", attention_dropout=0.0, **trivium_decoder_fields(shape, vocabulary))
    gpt2 = GPT2Config(
        vocab_size=vocabulary,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.ffn_dim,
        attn_pdrop=0.0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return {
        "Trivium, like GPT-2": lambda: TriviumForCausalLM(config),
        "GPT2LMHeadModel": lambda: GPT2LMHeadModel(gpt2),
    }


def decoders_like_llama(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of causal language models with Llama's architecture and gated feed-forward."""
    config = preset_config("llama-135m", **trivium_decoder_fields(shape, vocabulary))
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_dim,
        tie_word_embeddings=True,
        pad_token_id=PAD,
    )
    return {
        "Trivium, like Llama": lambda: TriviumForCausalLM(config),
        "LlamaForCausalLM": lambda: LlamaForCausalLM(llama),
    }


# Builders by architecture; the first model of each is Trivium's.
WAYS = {
    "encoder-decoder": encoder_decoders,
    "encoder-only": encoders,
    "decoder-only, like GPT-2": decoders_like_gpt2,
    "decoder-only, like Llama": decoders_like_llama,
}


def real_lengths(data: Path, rows: int) -> list[tuple[int, int]]:
    """Estimate the token lengths of the first sentence pairs of Multi30k, at 1.5 BPE tokens per word."""
    pairs = zip(*((data / f"train.{language}").read_text().splitlines() for language in ("en", "de")), strict=True)
    return [(round(1.5 * len(en.split())) + 1, round(1.5 * len(de.split())) + 1) for en, de in pairs][:rows]


def batch_of(way: str, lengths: list[tuple[int, int]], vocabulary: int, seed: int = 0) -> Batch:
    """Return a padded batch of random tokens of these lengths, with labels for the architecture's objective."""
    generator = torch.Generator().manual_seed(seed)

    def padded(side: int) -> Batch:
        longest = max(pair[side] for pair in lengths)
        mask = torch.arange(longest) < torch.tensor([pair[side] for pair in lengths])[:, None]
        ids = torch.randint(5, vocabulary, mask.shape, generator=generator).where(mask, PAD)
        return {"input_ids": ids, "attention_mask": mask.long()}

    batch = padded(0)
    if way == "encoder-decoder":
        target = padded(1)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    elif way == "encoder-only":
        masked = (torch.rand(batch["input_ids"].shape, generator=generator) < 0.15) & (batch["attention_mask"] == 1)
        labels = batch["input_ids"].where(masked, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(masked, MASK)
    else:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}
