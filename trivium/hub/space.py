"""Write the files of a Space that hosts the demo page of a model (see `trivium demo`) on the Hub."""

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

PAGE = "trivium_demo"  # name of the page's package in the Space, where `trivium` is not installed
SOURCE = Path(__file__).parent.parent / "demo"
APP = '''"""Demo of {repo_id}: {url}

To run it locally:

    pip install gradio=={gradio} -r requirements.txt
    python app.py           # the model from the Hub
    python app.py FOLDER    # a model of the same class from a local folder
"""

import sys

import torch
from transformers import {auto_class}, AutoTokenizer
from {page} import launch

name = sys.argv[1] if len(sys.argv) > 1 else {repo_id!r}
options = {{"revision": {revision!r}, "trust_remote_code": True}}  # pin the commit that was checked
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
        output: The folder to write; existing files are replaced, except a hand-written README.md.
        repo_id: The repository on the Hub from which the page loads the model.
        revision: Model commit to pin, so that the page runs only code that has been checked.

    Raises:
        ValueError: gradio is not installed, or the demo does not support the model.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise ValueError(
            "A Space needs gradio, whose version it pins, but gradio is not installed: `pip install gradio`."
        ) from error
    if usage_of(TriviumConfig.from_pretrained(folder)).command is None:
        raise ValueError(
            f"{folder} holds a model without a demo page, but must hold one that translates, summarizes or continues "
            "texts, fills masks, classifies texts, tags words or finds answers."
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
    variables = {
        "repo_id": repo_id,
        "url": f"{constants.ENDPOINT}/{repo_id}",
        "title": introduction.title,
        "summary": introduction.summary,
    }
    heading = html.escape(introduction.title, quote=False)
    readme = README.format(metadata=metadata.to_yaml(), mark=MARK, heading=heading, **variables)
    app = APP.format(
        gradio=gradio,
        auto_class=auto_class_of(folder),
        page=PAGE,
        revision=revision,
        examples=introduction.examples,
        **variables,
    )
    dependencies = [Requirement(line) for line in requires("trivium") or []]
    requirements = [f"{dependency}\n" for dependency in dependencies if dependency.name in ("torch", "transformers")]
    with whole_files(output) as partial:
        if not has_own_card(output):
            (partial / CARD_FILE).write_text(readme, encoding="utf-8")
        (partial / "app.py").write_text(app, encoding="utf-8")
        (partial / "requirements.txt").write_text("".join(requirements), encoding="utf-8")
        shutil.copytree(SOURCE, partial / PAGE, ignore=shutil.ignore_patterns("__pycache__"))
