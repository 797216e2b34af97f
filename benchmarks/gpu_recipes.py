"""Parts of `gpu.py` that train recipes with `trivium train`, as users do, spread over several calls if necessary."""

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from gpu_setting import Row, Setting

from trivium.storage.atomic import write_whole

LIMIT = 540  # maximum seconds per call; the next call resumes a run that takes longer
SMOKE = ["training.max_steps=4", "training.eval_steps=4", "training.save_steps=4", "training.warmup_steps=1"]
# nanoGPT's preset for a GPU, with the architecture of the recipe `shakespeare`.
NANOGPT = [
    "model.decoder_layers=6",
    "model.num_attention_heads=6",
    "model.num_key_value_heads=6",
    "model.d_model=384",
    "model.ffn_dim=1024",
    "model.dropout=0.2",
    "inputs.max_length=256",
    "training.per_device_train_batch_size=64",
    "training.per_device_eval_batch_size=64",
    "training.max_steps=5000",
    "training.eval_steps=250",
    "training.save_steps=250",
    "training.learning_rate=1e-3",
    "training.lr_scheduler_kwargs={min_lr: 1e-4}",
    "training.load_best_model_at_end=true",
]
SMOKE_SIZES = {
    "nanogpt": ["model.decoder_layers=1", "model.d_model=12", "model.ffn_dim=16", "inputs.max_length=16"],
    "multi30k-tiny": ["model.encoder_layers=1", "model.decoder_layers=1", "inputs.max_tokens=64"],
    "numbers": ["training.predict_with_generate=false", "metrics=[perplexity]"],
}


class UnfinishedError(Exception):
    """Raised when the time of a call is used up, and another call has to resume the run."""


def overrides(setting: Setting, name: str) -> list[str]:
    """Return the settings of a run: the data files, and the precision of the device."""
    is_gpu = setting.device.type == "cuda"
    settings = [f"training.bf16={str(is_gpu).lower()}", f"training.use_cpu={str(not is_gpu).lower()}"]
    settings += ["training.report_to=none", f"training.output_dir={setting.work / name}"]
    if name == "multi30k-tiny":
        data = setting.folder("data")
        files = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
        settings += [f"data.{split}={data / file}" for split, file in files.items()]
    if name == "nanogpt":
        text = setting.folder("text")
        settings += [f"data.train={text / 'train.txt'}", f"data.validation={text / 'val.txt'}", *NANOGPT]
    return settings + ([*SMOKE, *SMOKE_SIZES[name]] if setting.smoke else [])


def train_recipe(name: str, setting: Setting) -> list[Row]:
    """Train a recipe, or resume its training, and return the scores and the minutes taken.

    The checkpoints of `multi30k-tiny` are averaged, as in the paper, before it is scored on the test set.

    Raises:
        UnfinishedError: The time limit of a call is reached. The next call resumes from the last checkpoint.
        RuntimeError: Training failed.
    """
    recipe = "shakespeare" if name == "nanogpt" else name
    folder, clock = setting.work / name, setting.work / f"{name}.seconds.json"
    seconds = json.loads(clock.read_text()) if clock.is_file() else 0.0
    start = time.perf_counter()
    try:
        if not (folder / "config.json").is_file():
            how = "--resume" if any(folder.glob("checkpoint-*")) else "--overwrite"
            trivium("train", recipe, *overrides(setting, name), how, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise UnfinishedError(f"{name} is not finished: run the same command again to resume it.") from error
    finally:
        seconds += time.perf_counter() - start
        write_whole(clock, json.dumps(seconds))
    found = {"recipe": name, "minutes": round(seconds / 60, 2), "best validation loss": best_loss(folder)}
    if name == "multi30k-tiny":
        averaged = setting.work / f"{name}-averaged"
        shutil.rmtree(averaged, ignore_errors=True)
        trivium("average", str(folder), str(averaged), "--last", "1" if setting.smoke else "10")
        folder = averaged
    if name != "nanogpt":
        trivium("evaluate", str(folder))
        scores = json.loads((folder / "evaluation_test.json").read_text())["scores"]
        found |= {metric: round(result["score"], 4) for metric, result in scores.items()}
    return [found]


def trivium(*arguments: str, timeout: float | None = None) -> None:
    """Run a `trivium` command without capturing its output.

    Raises:
        RuntimeError: The command failed.
        subprocess.TimeoutExpired: The command took longer than `timeout`.
    """
    command = [sys.executable, "-m", "trivium_cli", *arguments]
    if code := subprocess.run(command, timeout=timeout, check=False).returncode:
        raise RuntimeError(f"`trivium {arguments[0]}` ended with exit code {code}; its output is above.")


def best_loss(folder: Path) -> float:
    """Return the lowest validation loss of a run."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return round(min(entry["eval_loss"] for entry in history if "eval_loss" in entry), 4)


train_numbers = partial(train_recipe, "numbers")
train_nanogpt = partial(train_recipe, "nanogpt")
train_multi30k = partial(train_recipe, "multi30k-tiny")
