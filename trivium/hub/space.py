"""A Space: a page on the Hub on which everybody can try a model, the one that `trivium demo` shows here."""

import html
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import SpaceCardData, constants
from packaging.requirements import Requirement

from trivium.configuration import TriviumConfig
from trivium.hub.card import CARD_FILE, MARK, has_own_card, introduce
from trivium.hub.checking import auto_class_of
from trivium.hub.usage import usage_of
from trivium.storage.atomic import whole_files

PAGE = "trivium_demo"  # what the package with the page is called there, where `trivium` itself is absent
SOURCE = Path(__file__).parent.parent / "demo"
APP = '''"""Demo of {repo_id}: {url}

To run it locally:

    pip install gradio=={gradio} -r requirements.txt
    python app.py           # the model from the Hub
    python app.py FOLDER    # a model of this kind from a folder
"""

import sys

import torch
from transformers import {auto_class}, AutoTokenizer
from {page} import launch

name = sys.argv[1] if len(sys.argv) > 1 else {repo_id!r}
options = {{"revision": {revision!r}, "trust_remote_code": True}}  # pinned: only this commit was checked
model = {auto_class}.from_pretrained(name, **options).eval()
launch(
    model.to(torch.accelerator.current_accelerator() or "cpu"),
    AutoTokenizer.from_pretrained(name, **options),
    title={title!r},
    summary={summary!r},
    examples={examples},
)
'''
README = """---
{metadata}
---

{mark}

# {heading}

{summary}

A demo of [{repo_id}]({url}). If the model is private, the Space needs a secret `HF_TOKEN` with read access to it.
"""


def write_space(folder: Path, output: Path, repo_id: str, revision: str = "main") -> None:
    """Write the folder of a Space: a README.md with the Hub's metadata, app.py, requirements.txt, and the page.

    Args:
        folder: The saved model.
        output: Where; what is there already is replaced, but not a README.md that a person wrote.
        repo_id: What the model is called on the Hub, from where the page loads it.
        revision: Its commit, so that the page runs the code that was checked, whatever comes later.

    Raises:
        ValueError: gradio is not installed, or there is no page for the model.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise ValueError("A Space needs gradio, whose version it names: `pip install gradio`.") from error
    if usage_of(TriviumConfig.from_pretrained(folder)).command is None:
        raise ValueError(
            f"{folder} holds no model that a page is for: one with texts to translate, continue or judge."
        )
    introduction = introduce(folder, repo_id)
    metadata = SpaceCardData(
        title=introduction.title,
        emoji="🔍",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=gradio,
        app_file="app.py",
        models=[repo_id],
        license=introduction.license,
    )
    words = {
        "repo_id": repo_id,
        "url": f"{constants.ENDPOINT}/{repo_id}",
        "title": introduction.title,
        "summary": introduction.summary,
    }
    heading = html.escape(introduction.title, quote=False)
    readme = README.format(metadata=metadata.to_yaml(), mark=MARK, heading=heading, **words)
    app = APP.format(
        gradio=gradio,
        auto_class=auto_class_of(folder),
        page=PAGE,
        revision=revision,
        examples=introduction.examples,
        **words,
    )
    needed = [Requirement(each) for each in requires("trivium") or []]
    requirements = [f"{each}\n" for each in needed if each.name in ("torch", "transformers")]
    with whole_files(output) as partial:
        if not has_own_card(output):
            (partial / CARD_FILE).write_text(readme, encoding="utf-8")
        (partial / "app.py").write_text(app, encoding="utf-8")
        (partial / "requirements.txt").write_text("".join(requirements), encoding="utf-8")
        shutil.copytree(SOURCE, partial / PAGE, ignore=shutil.ignore_patterns("__pycache__"))
