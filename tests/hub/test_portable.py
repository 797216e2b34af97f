"""Test that saved folders are complete and load without Trivium."""

import functools
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from clean import put_into_cache, run_without_trivium
from datasets import Dataset
from model_classes import LAYERS as CLASSES
from paths import ROOT
from tiny import tiny_config, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from trivium import (
    TriviumConfig,
    TriviumDecoderForSequenceClassification,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumTokenizer,
)
from trivium.tokenization import train_tokenizer

pytestmark = pytest.mark.subprocess

PORTABLE = [
    "modeling",
    "configuration/configuration_trivium.py",
    "tokenization/tokenization_backends.py",
    "tokenization/tokenization_trivium.py",
]


# This code is appended to the functions `load` and `compute`.
LOAD_AND_SAVE = """
results = {}
for folder, name in arguments[0]:
    model = load(getattr(transformers, name), folder, trust_remote_code=True)
    place = f"again-{folder.split('/')[-1]}-{name}"  # the last part is the module's name: one for each
    model.save_pretrained(place)
    again = load(getattr(transformers, name), place, trust_remote_code=True)
    results[place] = compute(model), compute(again)
torch.save(results, "results.pt")
"""


def load(loader: Any, folder: str, **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)  # seeds the heads that are missing in the folder
    return loader.from_pretrained(folder, dtype=torch.float64, **kwargs)


def compute(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **inputs)[0].detach()


def matching_classes(config: TriviumConfig) -> dict[str, type[PreTrainedModel]]:
    """Return the class that each Auto class selects for a configuration when Trivium is installed."""
    return classes_with_layers(config.encoder_layers, config.decoder_layers)


@functools.cache
def classes_with_layers(encoder_layers: int, decoder_layers: int) -> dict[str, type[PreTrainedModel]]:
    """Return the class of an architecture for each Auto class; cached, because this takes a third of a second."""
    config, fitting = tiny_config(encoder_layers=encoder_layers, decoder_layers=decoder_layers), {}
    for name in dir(transformers):
        if name.startswith("AutoModel"):
            with suppress(ValueError):  # no Trivium model, or none with this architecture
                fitting[name] = type(getattr(transformers, name).from_config(config))
    return fitting


def assert_is_complete(folder: Path, config: TriviumConfig) -> None:
    """Assert that `auto_map` lists every matching class, and that the folder contains their self-contained code."""
    expected = {"AutoConfig": "configuration_trivium.TriviumConfig"}
    for name, model_class in matching_classes(config).items():
        expected[name] = f"{model_class.__module__.removeprefix('trivium.modeling.')}.{model_class.__name__}"
    assert json.loads((folder / "config.json").read_text())["auto_map"] == expected
    code = {file.stem: file.read_text() for file in folder.glob("*.py")}
    assert {reference.split(".")[0] for reference in expected.values()} <= set(code)
    assert not [name for name, text in code.items() if "from trivium" in text]


def test_model_code_imports_only_its_own_folder() -> None:
    """transformers finds the files to copy by matching `from .name import x` with a regular expression."""
    files = [
        file
        for entry in PORTABLE
        for file in ([ROOT / entry] if entry.endswith(".py") else ROOT.glob("modeling/*.py"))
    ]
    assert len(files) > 10
    for file in files:
        if file.name == "__init__.py" or file.match("modeling/configuration_trivium.py"):
            continue
        for line in file.read_text().splitlines():
            if match := re.match(r"\s*(?:from|import)\s+(\S+)", line):
                module = match[1]
                allowed = re.fullmatch(r"\.\w+", module) or module.split(".")[0] in {
                    *sys.stdlib_module_names, "huggingface_hub", "tokenizers", "torch", "transformers",
                }  # fmt: skip
                # A docstring line may start with "from", but must not look like an import.
                assert allowed or " import " not in f" {line} ", f"{file.name}: {line}"


@pytest.mark.parametrize("model_class", CLASSES)
def test_saved_folder_is_complete(tmp_path: Path, model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class, **CLASSES[model_class])
    before = model.config.to_dict()
    model.save_pretrained(tmp_path / "saved")
    assert model.config.to_dict() == before
    assert_is_complete(tmp_path / "saved", model.config)
    Trainer(model, TrainingArguments(str(tmp_path / "runs"), report_to="none")).save_model(str(tmp_path / "trained"))
    assert_is_complete(tmp_path / "trained", model.config)


def test_folder_of_a_half_is_complete(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "both")
    for half in (TriviumForCausalLM, TriviumForMaskedLM):
        model = half.from_pretrained(tmp_path / "both")
        model.save_pretrained(tmp_path / half.__name__)
        assert_is_complete(tmp_path / half.__name__, model.config)


@pytest.mark.parametrize("place", [pytest.param("folder", marks=pytest.mark.slow), "hub"])
def test_saved_models_load_without_package(tmp_path: Path, place: str) -> None:
    """Load each model with its Auto class; from the encoder-decoder, also load the encoder and the decoder alone."""
    jobs, models = [], {}
    for model_class, layers in CLASSES.items():
        name = model_class.__name__
        folder = tmp_path / "saved" / name
        model = tiny_model(model_class, **layers)
        model.save_pretrained(folder)
        torch.testing.assert_close(compute(load(model_class, str(folder))), compute(model))
        address = str(folder)
        if place == "hub":
            address = f"someone/{name}"
            put_into_cache(tmp_path / "home", address, {"a" * 40: folder}, main="a" * 40)
        fitting = matching_classes(model.config)
        for auto_class, found in fitting.items():
            if found is model_class or model_class is TriviumForConditionalGeneration:
                jobs.append((address, auto_class))
                models[f"again-{name}-{auto_class}"] = load(found, str(folder))
    assert {type(model) for model in models.values()} == set(CLASSES)
    run_without_trivium(LOAD_AND_SAVE, jobs, folder=tmp_path, functions=(load, compute))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert set(results) == set(models)
    for saved_again, model in models.items():
        for result in results[saved_again]:
            torch.testing.assert_close(result, compute(model))
        assert_is_complete(tmp_path / saved_again, model.config)


# --- Locations -------------------------------------------------------------------------------------------------------

# This code is appended to the functions `load` and `compute`.
LOAD_FROM_PLACES = """
import os
results, versions = {}, {}
start = Path.cwd()
for key, (cwd, address, name, options) in arguments[0].items():
    os.chdir(start / cwd)
    loader = getattr(transformers, name)
    model = load(loader, address, trust_remote_code=True, **options)
    results[key] = compute(model)
    versions[key] = getattr(sys.modules[type(model).__module__], "VERSION", None)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    config = AutoConfig.from_pretrained(address, trust_remote_code=True, **options)
    for automatic, its_class in ((loader, type(model)), (transformers.AutoModel, type(model.model))):
        new = automatic.from_config(config, trust_remote_code=True)
        assert type(new) is its_class or options  # This loader ignores the revision.
        assert [*new.state_dict()] == [*(model if automatic is loader else model.model).state_dict()]
os.chdir(start)
torch.save(results, "results.pt")
json.dump(versions, open("versions.json", "w"))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow(reason="an interpreter without the package")
def test_models_load_from_any_location(tmp_path: Path) -> None:
    """Load from a relative path, odd folder names, a read-only folder, shards, and a pinned Hub revision."""
    first, second = (tiny_model() for _ in range(2))
    wanted: dict[str, PreTrainedModel] = {}
    jobs: dict[str, tuple[str, str, str, dict[str, Any]]] = {}

    def job(key: str, model: PreTrainedModel, address: str | Path, cwd: str = ".", **options: str) -> None:
        wanted[key] = model
        jobs[key] = (cwd, str(address), "AutoModelForSeq2SeqLM", options)

    names = ["plain", "deep/er/plain", "my model-v1.0 (last)", "1.5-beta", "Übersetzer №1", "class", "a.b/c.d"]
    for name in names:
        # transformers names the module of the code after the last path component.
        model = second if name == "deep/er/plain" else first
        model.save_pretrained(tmp_path / name)
        job(f"relative {name}", model, name)
    job("absolute", first, tmp_path / "plain")
    job("with a dot", first, "./plain/")
    job("here", first, ".", cwd="plain")
    job("here, with an odd name", first, ".", cwd="my model-v1.0 (last)")
    job("beside", second, "../../deep/er/plain", cwd="deep/er")

    first.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    job("sharded", first, "sharded")

    shutil.copytree(tmp_path / "plain", tmp_path / "read-only")
    for path in (*(tmp_path / "read-only").iterdir(), tmp_path / "read-only"):
        path.chmod(0o555)
    before = contents(tmp_path / "read-only")
    job("read-only", first, "read-only")

    for version, folder in (("1", "plain"), ("2", "deep/er/plain")):
        with (tmp_path / folder / "modeling_trivium.py").open("a") as code:
            code.write(f"\nVERSION = {version}\n")
    old, new = "1" * 40, "2" * 40
    snapshots = {old: tmp_path / "plain", new: tmp_path / "deep/er/plain"}
    put_into_cache(tmp_path / "home", "someone/versions-1.0", snapshots, main=new, v1=old)
    job("main", second, "someone/versions-1.0")
    job("tag", first, "someone/versions-1.0", revision="v1")
    job("commit", first, "someone/versions-1.0", revision=old)
    job("tag, its own code", first, "someone/versions-1.0", revision="v1", code_revision="v1")
    job("tag, newer code", first, "someone/versions-1.0", revision="v1", code_revision=new)

    run_without_trivium(LOAD_FROM_PLACES, jobs, folder=tmp_path, functions=(load, compute))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert list(results) == list(jobs)
    for key, model in wanted.items():
        torch.testing.assert_close(results[key], compute(model), msg=key)
    versions = json.loads((tmp_path / "versions.json").read_text())
    pinned = ("main", "tag", "commit", "tag, its own code", "tag, newer code")
    assert [versions[key] for key in pinned] == [2, 1, 1, 1, 2]
    assert contents(tmp_path / "read-only") == before


CLASSIFY = """
pipe = transformers.pipeline("text-classification", "classifier", trust_remote_code=True)
assert type(pipe.model).__name__ == "TriviumDecoderForSequenceClassification"
Path("results.json").write_text(json.dumps(pipe(arguments[0], batch_size=2, top_k=None)))
"""


def test_classifier_on_decoder_runs_in_pipeline(tmp_path: Path) -> None:
    """Run the pipeline without Trivium on texts of different lengths, in padded batches."""
    texts = ["a cat", "two dogs ran across the road", "birds"]
    tokenizer = train_tokenizer(texts, vocab_size=300, add_bos_token=True)
    sizes = {"encoder_layers": 0, "num_labels": 3, "vocab_size": len(tokenizer)}
    model = tiny_model(TriviumDecoderForSequenceClassification, **sizes).float()
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    run_without_trivium(CLASSIFY, texts, folder=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for text, result in zip(texts, results, strict=True):
        scores = {each["label"]: each["score"] for each in result}
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        assert [scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_saved_folder_has_no_pickles(tmp_path: Path) -> None:
    for model_class, layers in CLASSES.items():
        tiny_model(model_class, **layers).save_pretrained(tmp_path / model_class.__name__, max_shard_size="20KB")
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".py", ".safetensors"}


# --- Runs of the Trainer ---------------------------------------------------------------------------------------------

TEXTS = ["the quick brown fox", "a lazy dog", "a small house and a big garden"]
TRAINED: dict[str, type[PreTrainedModel]] = {
    "AutoModelForSeq2SeqLM": TriviumForConditionalGeneration,
    "AutoModelForSequenceClassification": TriviumForSequenceClassification,
    "AutoModelForCausalLM": TriviumForCausalLM,
}

# This code is appended to the functions `load`, `compute` and `written`.
LOAD_RUNS = """
results = {}
for folder, name in arguments[0]:
    model = load(getattr(transformers, name), folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results[folder] = [compute(model), *written(model, tokenizer)]
torch.save(results, "results.pt")
"""


def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterable[torch.Tensor]:
    inputs = tokenizer("a quick dog", return_tensors="pt")
    return [inputs["input_ids"], *([model.generate(**inputs)] if model.can_generate() else [])]


@pytest.mark.slow
def test_trainer_output_loads_without_package(tmp_path: Path) -> None:
    """Load checkpoints and the final model without Trivium, with their tokenizer and generation defaults."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    jobs = []
    for auto_class, model_class in TRAINED.items():
        model = tiny_model(model_class, vocab_size=300, **CLASSES[model_class]).float()
        if model.can_generate():
            model.generation_config = GenerationConfig.from_model_config(model.config)
            model.generation_config.update(num_beams=2, max_new_tokens=11, min_new_tokens=11)
        rows = [{**tokenizer(text), "labels": tokenizer(text)["input_ids"]} for text in TEXTS]
        if auto_class == "AutoModelForSequenceClassification":
            rows = [{**row, "labels": index % 2} for index, row in enumerate(rows)]
        trainer = Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(
                str(tmp_path / auto_class),
                max_steps=2,
                save_steps=1,
                per_device_train_batch_size=1,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            DataCollatorForSeq2Seq(tokenizer) if model.can_generate() else None,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model()
        for folder in ("checkpoint-1", "checkpoint-2", "."):
            assert_is_complete(tmp_path / auto_class / folder, model.config)
            assert (tmp_path / auto_class / folder / "generation_config.json").exists() == model.can_generate()
            jobs.append((str(tmp_path / auto_class / folder), auto_class))
    run_without_trivium(LOAD_RUNS, jobs, folder=tmp_path, functions=(load, compute, written))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert len(results) == len(jobs) == 9
    for folder, auto_class in jobs:
        model = load(getattr(transformers, auto_class), folder)
        for result, expected in zip(results[folder], [compute(model), *written(model, tokenizer)], strict=True):
            torch.testing.assert_close(result, expected)
        if model.can_generate():
            assert results[folder][2].shape[1] - (0 if model.config.is_encoder_decoder else 5) >= 11
        assert not torch.equal(results[folder][0], results[str(tmp_path / auto_class / "checkpoint-1")][0]) or (
            folder.endswith("checkpoint-1")
        )


# --- With Trivium installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [None, True, pytest.param(False, marks=pytest.mark.slow)])
def test_installed_classes_take_precedence(tmp_path: Path, trust: bool | None) -> None:
    """The installed classes are used for any value of trust_remote_code: the folder's code may differ."""
    options = {} if trust is None else {"trust_remote_code": trust}
    for model_class in (TriviumForConditionalGeneration, TriviumForTokenClassification, TriviumForCausalLM):
        model = tiny_model(model_class, **CLASSES[model_class])
        model.save_pretrained(tmp_path / model_class.__name__)
        for name, found in matching_classes(model.config).items():
            assert (
                type(getattr(transformers, name).from_pretrained(tmp_path / model_class.__name__, **options)) is found
            )
        assert type(AutoConfig.from_pretrained(tmp_path / model_class.__name__, **options)) is TriviumConfig
    folder = tmp_path / model_class.__name__
    for shared in (True, False):
        tokenizer = train_tokenizer(TEXTS, target_texts=TEXTS, vocab_size=300, shared=shared)
        tokenizer.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder, **options)
        # Unlike for models, transformers prefers trusted tokenizer code in the folder to the registered class.
        assert (type(loaded) is TriviumTokenizer) == (shared or not trust)
        assert loaded(TEXTS, text_target=TEXTS) == tokenizer(TEXTS, text_target=TEXTS)


# --- Subclasses ------------------------------------------------------------------------------------------------------

SUBCLASS = """
from trivium import TriviumForTokenClassification

class Tagger(TriviumForTokenClassification):
    pass
"""


def test_subclass_saves_only_auto_map_entries_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tagger.py").write_text(SUBCLASS)
    monkeypatch.syspath_prepend(tmp_path)
    model = tiny_model(importlib.import_module("my_tagger").Tagger, decoder_layers=0)
    with pytest.warns(UserWarning, match=r"AutoModel, .*not saved.*Tagger.*defined.*'my_tagger'"):
        model.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").glob("*.py")} == {"my_tagger.py", "configuration_trivium.py"}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_trivium.TriviumConfig",
        "AutoModelForTokenClassification": "my_tagger.Tagger",
    }
    again = type(model).from_pretrained(tmp_path / "saved", dtype=torch.float64)
    torch.testing.assert_close(compute(again), compute(model))


def test_subclass_of_script_saves_no_model_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class defined in `__main__` gets no `auto_map` entry, because its code cannot be saved."""
    tagger = type("Tagger", (TriviumForConditionalGeneration,), {"__module__": "__main__"})
    with pytest.warns(UserWarning, match=r"AutoModelForSeq2SeqLM, .*defined.*'__main__'"):
        tiny_model(tagger).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_trivium.TriviumConfig"}
    assert "custom_pipelines" not in config


def test_saving_does_not_mutate_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    before = dict(vars(model)), type(model), model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert (vars(model), type(model), model.config.to_dict()) == before


def test_fsdp_sharded_model_saves_its_own_class(tmp_path: Path) -> None:
    model = tiny_model()
    expected = compute(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert type(model).__name__ == "FSDPTriviumForConditionalGeneration"
        weights = {name: weight.full_tensor() for name, weight in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=weights)
        assert type(model).__name__ == "FSDPTriviumForConditionalGeneration"
    finally:
        torch.distributed.destroy_process_group()
    assert_is_complete(tmp_path, model.config)
    torch.testing.assert_close(compute(load(TriviumForConditionalGeneration, str(tmp_path))), expected)
