"""Correctness checks for `gpu.py`, which compare results on the device with those of a CPU in float32."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_setting import Row, Setting
from peers import EOS, PAD, Shape, trivium_fields
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from trivium import TriviumForConditionalGeneration, preset_config
from trivium.modeling.layers import DecoderLayer, EncoderLayer

SHAPE, VOCABULARY = Shape(2, 64, 4, 128), 100
STEPS = 5


def build(**fields: Any) -> TriviumForConditionalGeneration:
    """Return a small translation model without dropout; the weights are the same on every call."""
    torch.manual_seed(0)
    layers = {"encoder_layers": SHAPE.layers, "decoder_layers": SHAPE.layers, "dropout": 0.0}
    fields = {**trivium_fields(SHAPE, VOCABULARY), **layers, **fields}
    return TriviumForConditionalGeneration(preset_config("transformer-base", **fields))


def batch(padding: bool = True) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens, with padding on the right."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([16, 11, 7, 3] if padding else [16] * 4)
    mask = torch.arange(16) < lengths[:, None]
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator).where(mask, PAD)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(mask, -100)}


def train(model: nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> list[float]:
    """Take some steps of SGD, in float16 with a gradient scaler, and return the losses."""
    device = inputs["input_ids"].device.type
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    losses = []
    for _ in range(STEPS):
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def to(device: torch.device, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move a batch to the device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def row(check: str, found: Any, expected: Any, tolerance: float) -> Row:
    """Return a table row that compares two lists of numbers."""
    found, expected = (torch.as_tensor(values).double().cpu() for values in (found, expected))
    difference = (found - expected).abs().max().item()
    return {"check": check, "largest difference": difference, "tolerance": tolerance, "ok": difference <= tolerance}


@contextmanager
def one_process(setting: Setting) -> Iterator[None]:
    """Initialize a process group that contains only this process, with NCCL on a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if setting.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.FileStore(str(Path(folder) / "store"), 1), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def check_training(setting: Setting) -> list[Row]:
    """Train on one device: without wrappers, in float16 with a scaler, with DDP over NCCL, and with FSDP2."""
    inputs = batch()
    reference = build()
    expected = train(reference, inputs)
    on_device = to(setting.device, inputs)
    rows = [row("float32", train(build().to(setting.device), on_device), expected, 1e-3)]
    half = torch.float16 if setting.device.type == "cuda" else torch.bfloat16
    losses = train(build().to(setting.device), on_device, half)
    rows.append(row("float16 with its scaler" if half is torch.float16 else "bfloat16", losses, expected, 5e-2))
    with one_process(setting):
        total = torch.ones(3, device=setting.device)
        dist.all_reduce(total)
        rows.append(row("all_reduce, one process", total, [1.0] * 3, 0.0))
        parallel = DistributedDataParallel(build().to(setting.device))
        rows.append(row("DDP, one process", train(parallel, on_device), expected, 1e-3))
        mesh = init_device_mesh(setting.device.type, (1,))
        model = build().to(setting.device)
        for module in model.modules():
            if isinstance(module, (EncoderLayer, DecoderLayer)):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        rows.append(row("FSDP2, one device: losses", train(model, on_device), expected, 1e-3))
        weights = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
        ours, theirs = (
            torch.cat([w.detach().flatten().cpu() for w in ws]) for ws in (weights, reference.parameters())
        )
        rows.append(row("FSDP2, one device: weights", ours, theirs, 1e-3))
    return rows


@torch.no_grad()
def check_attention(setting: Setting) -> list[Row]:
    """Compare logits: flash attention in half precision, padding, and fully masked rows."""
    half = torch.float16 if setting.device.type == "cuda" else torch.bfloat16
    whole, padded = batch(padding=False), batch()
    masked = {**padded, "attention_mask": padded["attention_mask"].clone()}
    masked["attention_mask"][0] = 0

    def logits(inputs: dict[str, torch.Tensor], attention: str, device: torch.device, dtype: torch.dtype) -> Any:
        model = build(attn_implementation=attention).eval().to(device, dtype)
        found = model(**to(device, inputs)).logits.cpu()
        assert found.isfinite().all(), f"logits of {attention} in {dtype} are not finite"
        return found[(inputs["labels"] != -100) & inputs["attention_mask"].any(dim=1, keepdim=True)]

    cpu, single = torch.device("cpu"), torch.float32
    rows = []
    # The result of the fully masked row itself depends on the kernel: it is only required to be finite.
    for name, inputs in (("no padding", whole), ("padding", padded), ("beside a fully masked row", masked)):
        expected = logits(inputs, "eager", cpu, single)
        for attention in ("eager", "sdpa"):
            rows.append(row(f"{name}, {attention}", logits(inputs, attention, setting.device, single), expected, 1e-3))
            found = logits(inputs, attention, setting.device, half)
            rows.append(row(f"{name}, {attention}, {half}", found, expected, 0.1))
    expected = logits(whole, "eager", cpu, single)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # takes no mask; transformers drops a mask of ones
        rows.append(row(f"flash attention, {half}", logits(whole, "sdpa", setting.device, half), expected, 0.1))
    return rows


def check_generation(setting: Setting) -> list[Row]:
    """Compare tokens generated on the device, by Trivium's searches and with transformers' caches, with a CPU's."""
    model = build().eval()
    train(model, batch())
    model.eval()
    on_device = copy.deepcopy(model).to(setting.device)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    fixed = {"max_length": 20, "pad_token_id": PAD, "eos_token_id": EOS, "do_sample": False}
    caches = ["dynamic", "static", *(["offloaded", "offloaded_static"] if setting.device.type == "cuda" else [])]
    modes: dict[str, dict[str, Any]] = {"Trivium's search": {}}
    modes |= {f"{cache} cache": {"cache_implementation": cache} for cache in caches}
    rows = []
    for beams in (1, 4):
        expected = model.generate(**inputs, **fixed, num_beams=beams)
        for name, options in modes.items():
            found = on_device.generate(**to(setting.device, inputs), **fixed, **options, num_beams=beams).cpu()
            longest = max(found.shape[1], expected.shape[1])
            padded = [nn.functional.pad(ids, (0, longest - ids.shape[1]), value=PAD) for ids in (found, expected)]
            rows.append(row(f"{name}, {beams} beams", *padded, 0.0))
    return rows
