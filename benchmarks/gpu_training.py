"""Training benchmarks for `gpu.py`: MFU versus other implementations, and token batches versus `Seq2SeqTrainer`."""

from collections.abc import Callable
from typing import Any

import torch
from gpu_setting import Row, Setting
from peers import Shape, decoders_like_gpt2, decoders_like_llama, encoder_decoders
from timing import Ratio, interleaved
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import CausalLMOutput

Builders = dict[str, Callable[[], Any]]
# Decoders of 350 million parameters; the gated feed-forward network has three matrices instead of two.
GPT_350M, LLAMA_350M = Shape(24, 1024, 16, 4096), Shape(24, 1024, 16, 2816)


def train_big(setting: Setting) -> list[Row]:
    """Compare training of the paper's big model with Marian and BART."""
    builders = encoder_decoders(setting.shape("big"), setting.vocabulary)
    names = ("Trivium", "MarianMTModel", "BartForConditionalGeneration")
    return training_rows(setting, {name: builders[name] for name in names}, rows=64, length=128)


def train_llama(setting: Setting) -> list[Row]:
    """Compare training of a decoder with 350 million parameters with Llama."""
    shape = setting.shape("base") if setting.smoke else LLAMA_350M
    return training_rows(setting, decoders_like_llama(shape, setting.vocabulary), rows=16, length=1024)


def train_gpt(setting: Setting) -> list[Row]:
    """Compare training of a decoder with 350 million parameters with GPT-2 and a model like nanoGPT's."""
    shape = setting.shape("base") if setting.smoke else GPT_350M
    builders: Builders = decoders_like_gpt2(shape, setting.vocabulary)
    builders["like nanoGPT"] = lambda: PlainGPT(shape, setting.vocabulary, 1024)
    return training_rows(setting, builders, rows=16, length=1024)


def training_rows(setting: Setting, builders: Builders, rows: int, length: int) -> list[Row]:
    """Time compiled steps in bf16, with AdamW, on rows of equal length, without padding and without an attention mask.

    The FLOPs are counted by torch in a forward and backward pass of the first model that is not Trivium's.
    """
    if setting.smoke:
        rows, length = 2, 16
    ids = torch.randint(5, setting.vocabulary, (rows, length), device=setting.device)
    batch = {"input_ids": ids, "labels": ids}
    models = {name: build().to(setting.device).train() for name, build in builders.items()}
    first, peer = list(models)[:2]
    flop = count_flop(models[peer], batch)
    steps = {
        name: setting.synchronized(training_step(setting, model, batch, is_trivium=name == first))
        for name, model in models.items()
    }
    seconds = interleaved(steps, setting.seconds, warmup_rounds=3, min_rounds=2 if setting.smoke else 5)
    streams = 2 if models[first].config.is_encoder_decoder else 1  # source and target
    table = []
    for name, model in models.items():
        median = torch.tensor(seconds[name]).median().item()
        ratio = Ratio.of(seconds[name], seconds[first])
        table.append(
            {
                "model": name,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "ms/step": round(1000 * median, 2),
                "tokens/s": round(streams * ids.numel() / median),
                "TFLOP/s": round(flop / median / 1e12, 4),
                "time / Trivium": round(ratio.median, 3),
                "quartiles": ratio.spread,
            }
        )
    return table


def count_flop(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Count the floating-point operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


def training_step(
    setting: Setting, model: nn.Module, batch: dict[str, torch.Tensor], is_trivium: bool
) -> Callable[[], object]:
    """Return a function that takes one compiled training step; for Trivium without logits, as in its trainer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model, backend="eager" if setting.smoke else "inductor", dynamic=False)
    options = {"skip_logits": True} if is_trivium else {}

    def step() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16):
            loss = compiled(**batch, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class PlainGPT(nn.Module):
    """A GPT with the architecture of nanoGPT's model: fused queries, keys and values, no biases, tied embedding."""

    def __init__(self, shape: Shape, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, shape.d_model)
        self.positions = nn.Embedding(positions, shape.d_model)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.d_model, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> CausalLMOutput:
        """Return the loss."""
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]  # (B, T, d_model)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)  # (B, T, vocabulary)
        return CausalLMOutput(loss=F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()))


class PlainBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.d_model, shape.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, shape.ffn_dim, bias=False), nn.Linear(shape.ffn_dim, width, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, d_model) to the same shape."""
        qkv = self.attention(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)  # (B, T, d_model)
        x = x + self.dropout(self.output(y))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


def token_batches(setting: Setting) -> list[Row]:
    """Compare Trivium with token batches and unpadded layers against Marian in `Seq2SeqTrainer`, on Multi30k."""
    from through_trainer import MARIAN, TRIVIUM, compare  # deferred: only this part needs `datasets`

    shape, tokens = setting.shape("base"), 256 if setting.smoke else 24_576
    settings = [f"model.{name}={value}" for name, value in shape_fields(shape).items()]
    settings += [f"training.{name}={str(setting.device.type != kind).lower()}" for name, kind in PRECISION.items()]
    rounds, steps = (1, 12) if setting.smoke else (6, 60)
    speeds, losses = compare(
        setting.folder("data"),
        rounds,
        steps,
        settings=[f"inputs.max_tokens={tokens}", *settings],
        marian_shape=shape,
        marian_args={
            "per_device_train_batch_size": max(1, tokens // 24),
            "bf16": setting.device.type == "cuda",
            "use_cpu": setting.device.type == "cpu",
        },
    )
    ratio = Ratio.of(speeds[TRIVIUM], speeds[MARIAN])
    return [
        {
            "model": name,
            "real target tokens/s": round(torch.tensor(speeds[name]).median().item()),
            "Trivium / Marian": round(ratio.median, 2) if name == TRIVIUM else 1,
            "quartiles": ratio.spread if name == TRIVIUM else "",
            "cross entropy": round(losses[name][-1][1], 3),
        }
        for name in (TRIVIUM, MARIAN)
    ]


# Recipe settings, each with the device type on which it is disabled.
PRECISION = {"bf16": "cpu", "use_cpu": "cuda"}


def shape_fields(shape: Shape) -> dict[str, int]:
    """Return the model settings of a recipe for a shape."""
    return {
        "encoder_layers": shape.layers,
        "decoder_layers": shape.layers,
        "d_model": shape.d_model,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "ffn_dim": shape.ffn_dim,
    }
