"""File names of a run and its checkpoints, and checks of the names in a manifest."""

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

RECIPE_FILE = "recipe.yaml"
STATE_FILE = "trainer_state.json"  # written last by the Trainer
STREAM_FILES = "stream_*.json"  # stream position of each process
MODEL_FILES = (  # saved by the model, the tokenizer or the Trainer
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "target_tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "training_args.bin",
    "trainer_state.json",
)
CHECKPOINT_FILES = (  # saved in checkpoints only
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_*.pth",
    STREAM_FILES,
    "trained_weights.safetensors",
    "pytorch_model_fsdp*",
    "optimizer_*",
    "global_step*",
    "latest",
    "zero_to_fp32.py",
    "manifest.json",
)
REMOVED_CODE_FILES = ("linear.py",)  # saved next to the weights by earlier versions


def code_files() -> frozenset[str]:
    """Return the names of the code files that `save_pretrained` of this or an earlier version saves with a model."""
    import trivium.configuration
    import trivium.modeling
    import trivium.tokenization

    packages = (trivium.configuration, trivium.modeling, trivium.tokenization)
    folders = (Path(folder) for package in packages for folder in package.__path__)
    current = (path.name for folder in folders for path in folder.glob("[!_]*.py"))
    return frozenset((*current, *REMOVED_CODE_FILES))


def model_files_in(folder: Path) -> list[str]:
    """Return the names of the model, tokenizer and code files in a folder."""
    names = [path.name for path in folder.glob("*") if path.is_file()]
    return [name for name in names if name.endswith(".py") or matches(name, MODEL_FILES)]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a file name matches any of the glob patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def check_relative(name: str, manifest: Path) -> None:
    """Check that a name in a manifest is a plain relative path inside its folder.

    Raises:
        ValueError: The name is absolute, contains `..`, or is not a normalized POSIX path.
    """
    path = PurePosixPath(name)
    is_plain = path.parts and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
    if not is_plain or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(
            f"{manifest} names {name!r}, but a manifest may only name relative paths inside its own folder. Trivium "
            "did not write this file: do not use the folder, or delete the file."
        )


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the checkpoint folder of the Trainer's current step."""
    assert args.output_dir is not None  # set by the Trainer
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, valid or not, ordered by step."""
    numbered = {
        int(found[1]): path
        for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (found := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    return [numbered[step] for step in sorted(numbered)]
