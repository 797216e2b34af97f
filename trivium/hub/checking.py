"""Whether a saved model is fit to be published: others must be able to load it, and it must compute the same there."""

import ast
import json
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

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Load a saved model in a process without `trivium`, and compare what it computes there and here.

    Args:
        folder: What `model.save_pretrained` and `tokenizer.save_pretrained` wrote.
        trust_remote_code: Whether code in the folder may run that is not the installed package's.

    Raises:
        ValueError: Others could not use the folder, and why.
    """
    config = _read_json(folder / "config.json")
    auto_class = auto_class_of(folder)
    _check_code(folder)
    if not trust_remote_code:
        _check_origin(folder)
    _check_weights(folder)
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer: tokenizer.save_pretrained({str(folder)!r}) puts it there.")
    model_class: type[PreTrainedModel] = getattr(trivium, config["architectures"][0])
    model, report = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} has no weights for {len(missing)} parameters, such as {missing[0]}.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_vocabulary(folder, len(tokenizer), "vocab_size", model.config.vocab_size)
    if not getattr(tokenizer, "shared_vocabulary", True):
        size = model.config.decoder_vocab_size or model.config.vocab_size
        _check_vocabulary(folder, tokenizer.target_vocab_size, "decoder_vocab_size", size)
    here = probe.compute(model.eval(), tokenizer)
    there = _compute_without_trivium(folder, auto_class)
    for name, expected in here.items():
        try:
            torch.testing.assert_close(there[name], expected, rtol=1e-4, atol=1e-4)
        except (AssertionError, KeyError) as error:
            raise ValueError(
                f"{folder} computes other {name} where trivium is not installed: its code is not that of this "
                "version of trivium. Load the model and save it again."
            ) from error


def auto_class_of(folder: Path) -> str:
    """The Auto class that loads a folder's model as the class it was saved as, with the code in the folder.

    Raises:
        ValueError: There is none.
    """
    config = _read_json(folder / "config.json")
    architecture = (config.get("architectures") or ["model of no known class"])[0]
    model_class = getattr(trivium, architecture, None) if architecture in trivium.__all__ else None
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ValueError(f"{folder} holds a {architecture}, which is none of trivium's models.")
    references = config.get("auto_map", {})
    names = [name for name, reference in references.items() if reference.split(".")[-1] == architecture]
    names = [name for name in names if name != "AutoModelForPreTraining"] or names  # which every head could be
    if not names or "AutoConfig" not in references:
        raise ValueError(
            f"{folder}/config.json has no auto_map that leads to {architecture}, so that others could not load it: "
            "load the model with trivium and save it again."
        )
    return min(names)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}: it is not the folder of a saved model.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object.")
    return content


def code_of(folder: Path) -> set[str]:
    """The files with the code that a folder's configuration asks for, and what they import of each other."""
    references: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = _read_json(folder / name)
            for reference in content.get("auto_map", {}).values():
                references += reference if isinstance(reference, list) else [reference]  # a tokenizer's: slow, fast
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
                f"{folder} lacks {name}, a part of the model's code: load the model with trivium and save it again."
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
                    f"{folder}/{name} imports trivium, which others have not installed: what travels with a model may "
                    "only import torch, transformers, tokenizers and, as `from .name import X`, its own folder."
                )


def _check_origin(folder: Path) -> None:
    """Refuse code that is not the installed package's: the check is about to run it."""
    # The configuration's real file comes last: in `modeling` there is one that stands for it.
    packages = (trivium.modeling, trivium.tokenization, trivium.configuration)
    installed = {path.name: path for package in packages for path in Path(package.__path__[0]).glob("*.py")}
    for name in sorted(code_of(folder)):
        if name not in installed or (folder / name).read_bytes() != installed[name].read_bytes():
            raise ValueError(
                f"{folder}/{name} is not the code of the installed trivium, and the check would run it: load the "
                "model with trivium and save it again; or read the code, and trust it with --trust-remote-code "
                "(trust_remote_code=True)."
            )


def weights_of(folder: Path) -> list[str]:
    """The files that hold the weights, those that `from_pretrained` reads."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        return sorted(set(_read_json(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    hint = f" Only safetensors are published, not {', '.join(sorted(pickled))}." if pickled else ""
    raise ValueError(f"{folder} has no {WEIGHTS}.{hint}")


def _check_weights(folder: Path) -> None:
    for name in weights_of(folder):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}, which holds some of the weights.")
        try:
            with safe_open(folder / name, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    if not torch.isfinite(weights.get_tensor(key)).all():
                        raise ValueError(f"{folder}/{name} has weights that are no numbers (NaN or infinity): {key}.")
        except SafetensorError as error:
            raise ValueError(f"{folder}/{name} is damaged: {error}.") from error


def _check_vocabulary(folder: Path, tokens: int, field: str, size: int) -> None:
    if tokens > size:
        raise ValueError(
            f"{folder} has a tokenizer with {tokens} tokens, but its model's {field} is {size}: they do not belong "
            "together."
        )


def _compute_without_trivium(folder: Path, auto_class: str) -> dict[str, torch.Tensor]:
    """What `probe.compute` gives in a clean process, which has no caches to help it, and no network."""
    with tempfile.TemporaryDirectory() as home:
        results = Path(home, "results.safetensors")
        program = [sys.executable, "-I", probe.__file__, str(folder.resolve()), auto_class, str(results)]
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            environment.pop(name, None)  # they would lead out of that home
        process = subprocess.run(program, cwd=home, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()] or ["it ended without a word"]
            raise ValueError(f"{folder} does not load where trivium is not installed: {lines[-1].strip()}")
        return load_file(results)
