"""Models of others in the same shape as ours, and batches of the same tokens, for the benchmarks beside this file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
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

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM, preset_config

PAD, BOS, EOS, MASK = 0, 1, 2, 4
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Layers (of each stack), width, heads and width of the feed-forward."""

    layers: int
    d_model: int
    heads: int
    ffn_dim: int


SHAPES = {"tiny": Shape(4, 128, 4, 256), "small": Shape(3, 256, 4, 1024), "base": Shape(6, 512, 8, 2048)}


def ours_of(shape: Shape, vocabulary: int) -> dict[str, int]:
    """What a preset of ours takes for this shape, but for the layers."""
    return {
        "vocab_size": vocabulary,
        "d_model": shape.d_model,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "ffn_dim": shape.ffn_dim,
    }


def encoder_decoders(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Translators: ours is the paper's, with one matrix for both embeddings and the output, as Marian's and BART's."""
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
    ours = preset_config(
        "transformer-base",
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        label_smoothing=0.0,
        **{**common, **ours_of(shape, vocabulary)},
    )
    return {
        "Trivium": lambda: TriviumForConditionalGeneration(ours),
        "MarianMTModel": lambda: MarianMTModel(MarianConfig(**stacks, **common)),
        "BartForConditionalGeneration": lambda: BartForConditionalGeneration(BartConfig(**stacks, **common)),
    }


def encoders(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Masked language models: ours like BERT."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_dim,
        "pad_token_id": PAD,
    }
    ours = {"encoder_layers": shape.layers, **ours_of(shape, vocabulary)}
    modern = {"bos_token_id": BOS, "eos_token_id": EOS, "cls_token_id": BOS, "sep_token_id": EOS}
    return {
        "Trivium, like BERT": lambda: TriviumForMaskedLM(preset_config("bert-base", **ours)),
        "BertForMaskedLM": lambda: BertForMaskedLM(BertConfig(**common)),
        "ModernBertForMaskedLM": lambda: ModernBertForMaskedLM(ModernBertConfig(**common, **modern)),
    }


def decoders(shape: Shape, vocabulary: int) -> dict[str, Callable[[], nn.Module]]:
    """Causal language models: ours like GPT-2 and like Llama."""
    ours = {
        "decoder_layers": shape.layers,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **ours_of(shape, vocabulary),
    }
    gpt2 = GPT2Config(
        vocab_size=vocabulary,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.ffn_dim,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_dim,
        tie_word_embeddings=True,
    )
    return {
        "Trivium, like GPT-2": lambda: TriviumForCausalLM(preset_config("gpt2", **ours)),
        "GPT2LMHeadModel": lambda: GPT2LMHeadModel(gpt2),
        "Trivium, like Llama": lambda: TriviumForCausalLM(
            preset_config("llama-135m", tie_word_embeddings=True, **ours)
        ),
        "LlamaForCausalLM": lambda: LlamaForCausalLM(llama),
    }


WAYS = {"encoder-decoder": encoder_decoders, "encoder-only": encoders, "decoder-only": decoders}


def real_lengths(data: Path, rows: int) -> list[tuple[int, int]]:
    """Lengths of the first sentence pairs of Multi30k, in words with one and a half tokens each, as BPE makes them."""
    pairs = zip(*((data / f"train.{language}").read_text().splitlines() for language in ("en", "de")), strict=True)
    return [(round(1.5 * len(en.split())) + 1, round(1.5 * len(de.split())) + 1) for en, (de) in pairs][:rows]


def batch_of(way: str, lengths: list[tuple[int, int]], vocabulary: int, seed: int = 0) -> Batch:
    """Random tokens in rows of these lengths, padded, with the labels that the way learns by."""
    generator = torch.Generator().manual_seed(seed)

    def padded(which: int) -> Batch:
        longest = max(pair[which] for pair in lengths)
        mask = torch.arange(longest) < torch.tensor([pair[which] for pair in lengths])[:, None]
        ids = torch.randint(5, vocabulary, mask.shape, generator=generator).where(mask, PAD)
        return {"input_ids": ids, "attention_mask": mask.long()}

    batch = padded(0)
    if way == "encoder-decoder":
        target = padded(1)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    elif way == "encoder-only":
        chosen = (torch.rand(batch["input_ids"].shape, generator=generator) < 0.15) & (batch["attention_mask"] == 1)
        labels = batch["input_ids"].where(chosen, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(chosen, MASK)
    else:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}
