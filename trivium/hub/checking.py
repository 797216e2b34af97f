"""Check that a saved model loads without `trivium` and computes the same results, before it is published."""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_imports

import trivium
from trivium.hub import probe
from trivium.storage.json_object import read_json_object

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Load a saved model in a process without `trivium`, and compare its outputs with the installed package's.

    Args:
        folder: A folder written by `model.save_pretrained` and `tokenizer.save_pretrained`.
        trust_remote_code: Whether code in the folder that differs from the installed package may run.

    Raises:
        ValueError: The folder is not usable without `trivium`; the message says why.
    """
    config = _read_json(folder / "config.json")
    auto_class = auto_class_of(folder)
    _check_code(folder)
    if not trust_remote_code:
        _check_origin(folder)
    _check_weights(folder)
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer: save it with tokenizer.save_pretrained({str(folder)!r}).")
    model_class: type[PreTrainedModel] = getattr(trivium, config["architectures"][0])
    model, report = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} has no weights for {len(missing)} parameters, such as {missing[0]}.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_vocabulary(folder, len(tokenizer), "vocab_size", model.config.vocab_size)
    if not getattr(tokenizer, "shared_vocabulary", True):
        size = model.config.decoder_vocab_size or model.config.vocab_size
        _check_vocabulary(folder, tokenizer.target_vocab_size, "decoder_vocab_size", size)
    expected = probe.compute(model.eval(), tokenizer)
    actual = _compute_without_trivium(folder, auto_class)
    for name, tensor in expected.items():
        try:
            torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-4)
        except (AssertionError, KeyError) as error:
            raise ValueError(
                f"{folder} computes different {name} without trivium installed: its code differs from the installed "
                "version of trivium. Load the model with trivium and save it again."
            ) from error


def auto_class_of(folder: Path) -> str:
    """Return the name of the Auto class that loads the folder's model as its saved class, with the folder's code.

    Raises:
        ValueError: There is no such Auto class.
    """
    config = _read_json(folder / "config.json")
    architecture = (config.get("architectures") or ["model of no known class"])[0]
    model_class = getattr(trivium, architecture, None) if architecture in trivium.__all__ else None
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ValueError(f"{folder} holds a {architecture}, but must hold a model of trivium.")
    references = config.get("auto_map", {})
    names = [name for name, reference in references.items() if reference.split(".")[-1] == architecture]
    names = [name for name in names if name != "AutoModelForPreTraining"] or names  # the least specific entry
    if not names or "AutoConfig" not in references:
        raise ValueError(
            f"{folder}/config.json has no auto_map entry for {architecture}, so it does not load without trivium: "
            "load the model with trivium and save it again."
        )
    return min(names)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}: it is not a saved model.")
    return read_json_object(file)


def code_of(folder: Path) -> set[str]:
    """Return the names of the code files referenced by the folder's configuration, and of the files they import."""
    references: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = _read_json(folder / name)
            for reference in content.get("auto_map", {}).values():
                references += (
                    reference if isinstance(reference, list) else [reference]
                )  # a tokenizer entry has two classes: slow and fast
            references += [pipeline["impl"] for pipeline in content.get("custom_pipelines", {}).values()]
    modules = {reference.split(".")[0] for reference in references if reference and "--" not in reference}
    files: set[Path] = set()
    wanted = {folder / f"{module}.py" for module in modules}
    while new := wanted - files:
        files |= new
        imported = {module for file in new if file.is_file() for module in get_relative_imports(file)}
        wanted = {folder / f"{module}.py" for module in imported}
    return {file.name for file in files}


def _check_code(folder: Path) -> None:
    for name in sorted(code_of(folder)):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} lacks {name}, which the model's code needs: load the model with trivium and save it again."
            )
        try:
            tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{folder}/{name} is not valid Python: {error}.") from error
        for node in ast.walk(tree):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module.split(".")[0] == "trivium" for module in imported):
                raise ValueError(
                    f"{folder}/{name} imports trivium, which users of the model may not have: code saved "
                    "with a model may only import torch, transformers, tokenizers and, as `from .name import X`, its "
                    "own folder."
                )


def _check_origin(folder: Path) -> None:
    """Reject code that differs from the installed package, because the check runs it."""
    # `configuration` comes last, because `modeling` contains a stub with the same file name.
    packages = (trivium.modeling, trivium.tokenization, trivium.configuration)
    installed = {path.name: path for package in packages for path in Path(package.__path__[0]).glob("*.py")}
    for name in sorted(code_of(folder)):
        if name not in installed or (folder / name).read_bytes() != installed[name].read_bytes():
            raise ValueError(
                f"{folder}/{name} is not the code of the installed trivium, and the check would run it: load the "
                "model with trivium and save it again; or review the code and allow it with --trust-remote-code "
                "(trust_remote_code=True)."
            )


def weights_of(folder: Path) -> list[str]:
    """Return the names of the weight files that `from_pretrained` reads."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        return sorted(set(_read_json(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    hint = (
        f" Only safetensors are published, not {', '.join(sorted(pickled))}: save the model again." if pickled else ""
    )
    raise ValueError(f"{folder} has no {WEIGHTS}.{hint}")


def _check_weights(folder: Path) -> None:
    for name in weights_of(folder):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}, a shard of the weights: save the model again.")
        try:
            with safe_open(folder / name, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    if not torch.isfinite(weights.get_tensor(key)).all():
                        raise ValueError(f"{folder}/{name} has weights that are not finite (NaN or infinity): {key}.")
        except SafetensorError as error:
            raise ValueError(f"{folder}/{name} is corrupt: {error}.") from error


def _check_vocabulary(folder: Path, tokens: int, field: str, size: int) -> None:
    if tokens > size:
        raise ValueError(
            f"{folder} has a tokenizer with {tokens} tokens, but its model's {field} is {size}: save "
            "the tokenizer that the model was trained with."
        )


def _compute_without_trivium(folder: Path, auto_class: str) -> dict[str, torch.Tensor]:
    """Run `probe.compute` in a clean process, with empty caches and without network."""
    with tempfile.TemporaryDirectory() as home:
        results = Path(home, "results.safetensors")
        program = [sys.executable, "-I", probe.__file__, str(folder.resolve()), auto_class, str(results)]
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            environment.pop(name, None)  # these variables would override HF_HOME
        process = subprocess.run(program, cwd=home, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()] or ["the process printed no error"]
            raise ValueError(f"{folder} does not load without trivium installed: {lines[-1].strip()}")
        return load_file(results)
