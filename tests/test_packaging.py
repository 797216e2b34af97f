"""What is installed, and what travels to the Hub."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import tiny_model
from transformers import PreTrainedModel, Trainer, TrainingArguments

from trivium import (
    TriviumConfig,
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)

ROOT = Path(__file__).parent.parent
PORTABLE = ["modeling", "configuration/configuration_trivium.py", "tokenization/tokenization_trivium.py"]

ENCODER_ONLY, DECODER_ONLY = {"decoder_layers": 0}, {"encoder_layers": 0}
CLASSES: dict[type[PreTrainedModel], dict[str, int]] = {
    TriviumModel: {},
    TriviumForConditionalGeneration: {},
    TriviumEncoderModel: ENCODER_ONLY,
    TriviumForMaskedLM: ENCODER_ONLY,
    TriviumForSequenceClassification: ENCODER_ONLY,
    TriviumForTokenClassification: ENCODER_ONLY,
    TriviumForQuestionAnswering: ENCODER_ONLY,
    TriviumDecoderModel: DECODER_ONLY,
    TriviumForCausalLM: DECODER_ONLY,
}

# Runs where the package is absent, after the functions `load` and `compute`.
LOAD_AND_SAVE = """
import json, sys
from importlib.util import find_spec
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert find_spec("trivium") is None
results = {}
for folder, name in json.loads(sys.argv[1]):
    model = load(getattr(transformers, name), folder, trust_remote_code=True)
    place = f"again-{folder.split('/')[-1]}-{name}"  # the last part is the module's name: one for each
    model.save_pretrained(place)
    again = load(getattr(transformers, name), place, trust_remote_code=True)
    results[place] = compute(model), compute(again)
torch.save(results, "results.pt")
"""


def load(loader: Any, folder: str, **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)  # for heads that are not in the folder
    return loader.from_pretrained(folder, dtype=torch.float64, **kwargs)


def compute(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **inputs)[0].detach()


def fitting_classes(config: TriviumConfig) -> dict[str, type[PreTrainedModel]]:
    """What the Auto classes make of a configuration where the package is installed."""
    fitting = {}
    for name in dir(transformers):
        if name.startswith("AutoModel"):
            with suppress(ValueError):  # it is not for Trivium, or for another of the three ways
                fitting[name] = type(getattr(transformers, name).from_config(config))
    return fitting


def assert_is_whole(folder: Path, config: TriviumConfig) -> None:
    """A folder's configuration names every class that fits, and their code is there and needs no package."""
    expected = {"AutoConfig": "configuration_trivium.TriviumConfig"}
    for name, model_class in fitting_classes(config).items():
        expected[name] = f"{model_class.__module__.removeprefix('trivium.modeling.')}.{model_class.__name__}"
    assert json.loads((folder / "config.json").read_text())["auto_map"] == expected
    code = {file.stem: file.read_text() for file in folder.glob("*.py")}
    assert {reference.split(".")[0] for reference in expected.values()} <= set(code)
    assert not [name for name, text in code.items() if "from trivium" in text]


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    roots = [ROOT / name for name in ("configuration", "modeling", "recipes", "tokenization", "trivium")]
    found = {init.parent.relative_to(ROOT) for root in roots for init in root.rglob("__init__.py")}
    names = {".".join(path.parts if path.parts[0] == "trivium" else ("trivium", *path.parts)) for path in found}
    assert listed == names


def test_the_wheel_holds_and_imports_everything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "typings", "*.egg-info", "__pycache__")
    )
    # The build backend is called in this environment: a fresh one would have to be downloaded.
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    code = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib, pkgutil, trivium
for module in pkgutil.walk_packages(trivium.__path__, "trivium."):
    if not module.name.endswith("__main__"):  # it would run
        importlib.import_module(module.name)
from trivium.recipe import available_recipes
print(trivium.__file__, available_recipes())
"""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert str(installed) in printed
    assert "numbers" in printed


def test_what_travels_imports_only_its_own_folder() -> None:
    """transformers collects `from .name import x` with a regular expression, and copies the files flat."""
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
                # A docstring's line may begin with "from", but not look like an import.
                assert allowed or " import " not in f" {line} ", f"{file.name}: {line}"


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_saved_folder_is_whole(tmp_path: Path, model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class, **CLASSES[model_class])
    before = model.config.to_dict()
    model.save_pretrained(tmp_path / "saved")
    assert model.config.to_dict() == before
    assert_is_whole(tmp_path / "saved", model.config)
    Trainer(model, TrainingArguments(str(tmp_path / "runs"), report_to="none")).save_model(str(tmp_path / "trained"))
    assert_is_whole(tmp_path / "trained", model.config)


def test_the_folder_of_a_half_is_whole(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "both")
    for half in (TriviumForCausalLM, TriviumForMaskedLM):
        model = half.from_pretrained(tmp_path / "both")
        model.save_pretrained(tmp_path / half.__name__)
        assert_is_whole(tmp_path / half.__name__, model.config)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_saved_models_load_where_the_package_is_absent(tmp_path: Path, place: str) -> None:
    """Each by its own Auto class, and the encoder-decoder by all that fit it, so that it is cut in half, too."""
    home = tmp_path / "home"
    jobs, models = [], {}
    for model_class, layers in CLASSES.items():
        name = model_class.__name__
        folder = tmp_path / "saved" / name
        model = tiny_model(model_class, **layers)
        model.save_pretrained(folder)
        torch.testing.assert_close(compute(load(model_class, str(folder))), compute(model))
        address = str(folder)
        if place == "hub":
            address, revision = f"someone/{name}", "a" * 40
            repository = home / "hub" / f"models--someone--{name}"
            (repository / "refs").mkdir(parents=True)
            (repository / "refs" / "main").write_text(revision)
            shutil.copytree(folder, repository / "snapshots" / revision)
        fitting = fitting_classes(model.config)
        for auto_class, found in fitting.items():
            if found is model_class or model_class is TriviumForConditionalGeneration:
                jobs.append((address, auto_class))
                models[f"again-{name}-{auto_class}"] = load(found, str(folder))
    assert {type(model) for model in models.values()} == set(CLASSES)
    program = "\n".join(
        ["import torch, transformers; from typing import Any; from transformers import PreTrainedModel"]
        + [inspect.getsource(function) for function in (load, compute)]
        + [LOAD_AND_SAVE]
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-I", "-c", program, json.dumps(jobs)], check=True, env=environment, cwd=tmp_path)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert set(results) == set(models)
    for saved_again, model in models.items():
        for result in results[saved_again]:
            torch.testing.assert_close(result, compute(model))
        assert_is_whole(tmp_path / saved_again, model.config)


def test_importing_downloads_nothing_and_starts_no_workshop() -> None:
    code = (
        "import sys, trivium; print([n for n in ('datasets', 'evaluate', 'omegaconf', 'typer') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
