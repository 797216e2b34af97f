"""Test that transformers.js, run by Node, returns the same outputs as the exported models.

transformers.js is not part of `make install`; `make runtimes` installs it in `build/node`.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from tiny import tiny_model
from transformers import PreTrainedModel, pipeline

from trivium import (
    TriviumDecoderForSequenceClassification,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumTokenizer,
)
from trivium.interop.transformers_js import to_transformers_js
from trivium.tokenization import train_tokenizer

pytestmark = pytest.mark.slow
PACKAGE = ROOT / "build" / "node" / "node_modules" / "@huggingface" / "transformers"
if shutil.which("node") is None or not PACKAGE.is_dir():
    pytest.skip("transformers.js is not installed: see `make runtimes`", allow_module_level=True)

PROGRAM = """
import { readFileSync } from "node:fs";
const job = JSON.parse(readFileSync(0, "utf-8"));
const { env, pipeline } = await import(job.library);
env.allowRemoteModels = false;
env.localModelPath = job.folder;
const results = [];
for (const [task, name, dtype, texts, options] of job.calls) {
  const run = await pipeline(task, name, { dtype });
  const output = await run(texts, options);
  results.push({ output: output.tolist?.() ?? output, ids: texts.map((text) => run.tokenizer.encode(text)) });
}
console.log("\\n" + JSON.stringify(results));
"""
TEXTS = ["a cat sat on the mat", "two dogs", "birds sing in the morning, don't they?  12 of them", "é 日本"]
SMALL: dict[str, Any] = {"num_key_value_heads": 2}


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=320, add_bos_token=True, add_eos_token=True)


def run(folder: Path, *calls: tuple[str, str, str, list[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run transformers.js pipelines in one Node process, and return their outputs.

    Each call is a tuple of task, model folder, dtype, input texts and pipeline options.
    """
    library = (PACKAGE / "dist" / "transformers.node.mjs").as_uri()
    job = json.dumps({"library": library, "folder": f"{folder}/", "calls": calls})
    command = ["node", "--input-type=module", "--eval", PROGRAM]
    printed = subprocess.run(command, input=job, capture_output=True, text=True, check=True).stdout
    return json.loads(printed.rsplit("\n", 2)[-2])


def export(
    model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer, folder: Path, **options: Any
) -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny_model(model_class, std=0.3, vocab_size=len(tokenizer), **{**SMALL, **options}).float()
    if model.can_generate():
        model.generation_config.update(num_beams=2, early_stopping=True)
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    notes = to_transformers_js(folder / "saved", folder / "web")
    assert notes == ["num_beams=2 is dropped: transformers.js has no beam search"] * model.can_generate()
    shutil.rmtree(folder / "saved")  # The web folder must work without the folder that it was exported from.
    return model


def test_embeddings(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = export(TriviumEncoderModel, tokenizer, tmp_path, decoder_layers=0, position_embedding_type="learned")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        expected = (model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    calls = [("feature-extraction", "web", dtype, TEXTS, {"pooling": "mean"}) for dtype in ("fp32", "q8")]
    exact, quantized = run(tmp_path, *calls)
    assert exact["ids"] == tokenizer(TEXTS)["input_ids"]
    torch.testing.assert_close(torch.tensor(exact["output"]), expected, rtol=1e-4, atol=1e-4)
    similarity = torch.cosine_similarity(torch.tensor(quantized["output"]), expected)
    assert similarity.min() > 0.98


def test_masked_tokens(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = export(TriviumForMaskedLM, tokenizer, tmp_path, decoder_layers=0, type_vocab_size=2)
    texts = ["a <mask> sat on the mat", "birds sing in the <mask>"]
    found = run(tmp_path, ("fill-mask", "web", "fp32", texts, {"top_k": 3}))[0]
    assert found["ids"] == tokenizer(texts)["input_ids"]
    expected = pipeline("fill-mask", model=model, tokenizer=tokenizer)(texts, top_k=3)
    for row, expected_row in zip(found["output"], expected, strict=True):
        assert [each["token"] for each in row] == [each["token"] for each in expected_row]
        assert [each["score"] for each in row] == pytest.approx([each["score"] for each in expected_row], abs=1e-4)


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_generated_texts(position: str, tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    prompts = TriviumTokenizer(tokenizer_object=tokenizer._tokenizer, add_bos_token=True, add_eos_token=False)
    prompts.padding_side = "left"
    model = export(TriviumForCausalLM, prompts, tmp_path, encoder_layers=0, position_embedding_type=position)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "early_stopping": False}
    found = run(tmp_path, *[("text-generation", "web", dtype, TEXTS, options) for dtype in ("fp32", "q8")])
    batch = prompts(TEXTS, padding=True, return_tensors="pt")
    expected = prompts.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)
    assert [row[0]["generated_text"] for row in found[0]["output"]] == expected
    assert len(found[1]["output"]) == len(TEXTS)


def test_translations(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = export(TriviumForConditionalGeneration, tokenizer, tmp_path, decoder_layers=2)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "early_stopping": False}
    found = run(tmp_path, *[("translation", "web", dtype, TEXTS, options) for dtype in ("fp32", "q8")])
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = tokenizer.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)
    assert [row["translation_text"] for row in found[0]["output"]] == expected
    assert len(found[1]["output"]) == len(TEXTS)


def test_classes_of_a_decoder(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model_class = TriviumDecoderForSequenceClassification
    model = export(model_class, tokenizer, tmp_path, encoder_layers=0, num_labels=3)
    found = run(tmp_path, ("text-classification", "web", "fp32", TEXTS, {"top_k": 3}))[0]["output"]
    with torch.no_grad():
        probabilities = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(dim=1)
    for row, expected in zip(found, probabilities.tolist(), strict=True):
        scores = {each["label"]: each["score"] for each in row}
        assert [scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected, abs=1e-4)
