"""Generation benchmarks for `gpu.py`: eager decoding vs. static caches with CUDA graphs; translating 3,000 lines."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from decoding import read_sentences, trained
from gpu_setting import Row, Setting
from peers import EOS, PAD, encoder_decoders
from timing import Ratio, interleaved
from transformers import AutoModelForSeq2SeqLM, CompileConfig

from trivium import TriviumTokenizer
from trivium.translation import translate

SEARCHES = {"greedy": {"num_beams": 1}, "beam 4": {"num_beams": 4}}
NEW_TOKENS, LINES = 64, 3000


def generate_one(setting: Setting) -> list[Row]:
    """Generate one sentence at a time."""
    return generate(setting, rows=1)


def generate_64(setting: Setting) -> list[Row]:
    """Generate 64 sentences at once."""
    return generate(setting, rows=2 if setting.smoke else 64)


def generate(setting: Setting, rows: int) -> list[Row]:
    """Generate 64 tokens with the base model: eagerly, and with a static cache and transformers' CUDA graphs.

    Trivium and Marian have random weights, so each model's tokens are compared with those of its own eager search.
    """
    new_tokens = 4 if setting.smoke else NEW_TOKENS
    builders = encoder_decoders(setting.shape("base"), setting.vocabulary)
    names = ("Trivium", "MarianMTModel")
    models: dict[str, Any] = {name: builders[name]().to(setting.device).eval() for name in names}
    static: dict[str, Any] = {"cache_implementation": "static"}
    if setting.smoke:
        static["compile_config"] = CompileConfig(backend="eager", mode=None)
    modes: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in names:
        modes |= {f"{name}, eager": (name, {}), f"{name}, static cache": (name, static)}
    ids = torch.randint(5, setting.vocabulary, (rows, 32), device=setting.device)
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    fixed = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": None, **lengths}
    table = []
    for search, beams in SEARCHES.items():
        outputs: dict[str, torch.Tensor] = {}

        def run(mode: str, beams: dict[str, int] = beams, outputs: dict[str, torch.Tensor] = outputs) -> None:
            name, options = modes[mode]
            outputs[mode] = models[name].generate(ids, **fixed, **beams, **options).clone()

        candidates = {mode: setting.synchronized(partial(run, mode)) for mode in modes}
        min_rounds = 1 if setting.smoke else 5
        seconds = interleaved(candidates, setting.seconds, warmup_rounds=3, min_rounds=min_rounds)
        for mode, (name, _) in modes.items():
            ratio = Ratio.of(seconds[f"{name}, eager"], seconds[mode])
            table.append(
                {
                    "rows": rows,
                    "search": search,
                    "model": mode,
                    "ms/token": round(1000 * torch.tensor(seconds[mode]).median().item() / new_tokens, 3),
                    "times as fast as eager": round(ratio.median, 2),
                    "quartiles": ratio.spread,
                    "same tokens": torch.equal(outputs[mode], outputs[f"{name}, eager"]),
                }
            )
    return table


def translate_lines(setting: Setting) -> list[Row]:
    """Translate 3,000 lines with the base model: a Marian loop, `trivium translate`, and CTranslate2 in float16.

    The lines are from Multi30k. All candidates use the same weights, which are trained briefly, so that outputs have
    realistic lengths.
    """
    data, steps = setting.folder("data"), 20 if setting.smoke else 2000
    folder = trained(
        "encoder-decoder",
        "smoke" if setting.smoke else "base",
        10_000,
        data,
        setting.work / "models",
        steps,
        shape=setting.shape("base"),
        device=setting.device,
    )
    tokenizer = TriviumTokenizer.from_pretrained(folder)
    texts = (read_sentences(data / "test_2016_flickr.en") + read_sentences(data / "train.en"))[:LINES]
    texts = texts[:4] if setting.smoke else texts
    dtype = torch.float16 if setting.device.type == "cuda" else torch.float32
    marian, ours = (
        AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype).to(setting.device).eval()
        for path in (folder / "native", folder)
    )
    engines: dict[str, Callable[..., Any]] = {
        "MarianMTModel, batches of 64": partial(plain_loop, marian),
        "trivium translate, torch": partial(translate, ours),
    }
    if (engine := ctranslate2_engine(setting, folder)) is not None:
        engines["trivium translate, CTranslate2"] = partial(translate, engine)
    first = next(iter(engines))
    table = []
    for search, beams in SEARCHES.items():
        outputs: dict[str, list[str]] = {}

        def run(name: str, beams: dict[str, int] = beams, outputs: dict[str, list[str]] = outputs) -> None:
            outputs[name] = list(engines[name](tokenizer, texts, **beams))

        candidates = {name: setting.synchronized(partial(run, name)) for name in engines}
        min_rounds = 1 if setting.smoke else 3
        seconds = interleaved(candidates, setting.seconds, warmup_rounds=1, min_rounds=min_rounds)
        for name in engines:
            ratio = Ratio.of(seconds[first], seconds[name])
            median = torch.tensor(seconds[name]).median().item()
            tokens = sum(len(ids) for ids in tokenizer(outputs[name])["input_ids"])
            table.append(
                {
                    "search": search,
                    "engine": name,
                    "target tokens/s": round(tokens / median),
                    "times as fast": round(ratio.median, 2),
                    "quartiles": ratio.spread,
                    "same lines": sum(a == b for a, b in zip(outputs[first], outputs[name], strict=True)),
                }
            )
    return table


def plain_loop(model: Any, tokenizer: TriviumTokenizer, texts: list[str], **options: Any) -> list[str]:
    """Translate in batches of 64 in file order, as in typical user code."""
    translations: list[str] = []
    for start in range(0, len(texts), 64):
        inputs = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt").to(model.device)
        max_length = inputs["input_ids"].shape[1] + 50
        ids = model.generate(**inputs, **options, max_length=max_length, pad_token_id=PAD, eos_token_id=EOS)
        translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return translations


def ctranslate2_engine(setting: Setting, folder: Path) -> Any:
    """Return the converted model, in float16 on a GPU, or None if CTranslate2 is not installed."""
    from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2

    quantization = "float16" if setting.device.type == "cuda" else "float32"
    with TemporaryDirectory() as temporary:
        converted = Path(temporary) / "converted"
        try:
            to_ctranslate2(folder, converted, quantization)
        except ImportError as error:
            print(f"Left out: {error}")
            return None
        return CTranslate2Model(converted, device=setting.device.type, compute_type=quantization)
