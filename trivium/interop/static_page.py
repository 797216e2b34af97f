"""Write a static page that translates in the browser, without a model server.

    write_static_page("runs/numbers", "page", "node_modules", title="Numbers", example="half past seven")

The output folder is self-contained: the page, the 8-bit model of `to_transformers_js`, and transformers.js with its
WebAssembly. Any web server can serve it (`python -m http.server --directory page`), and so can a static Space.
"""

import json
import shutil
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig

from trivium.interop.transformers_js import GRAPHS, QUANTIZED, to_transformers_js
from trivium.storage.atomic import check_free, whole_folder, write_whole

HERE = Path(__file__).parent
LIBRARY_FILES = (
    "@huggingface/transformers/dist/transformers.min.js",
    # Browsers with WebGPU load the first pair of files, Safari loads the second.
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
)
README = """---
title: {title}
sdk: static
pinned: false
---

A page that translates in the browser.
"""


def write_static_page(
    source: str | Path,
    output: str | Path,
    node_modules: str | Path,
    *,
    title: str,
    summary: str = "",
    example: str = "",
) -> None:
    """Write a folder with a web page that translates in the browser.

    Args:
        source: Folder of a saved `TriviumForConditionalGeneration` with one vocabulary.
        output: A new or empty folder.
        node_modules: Folder into which `npm install @huggingface/transformers` installed transformers.js 4.
        title: Heading of the page.
        summary: Text below the heading.
        example: Initial text of the input.

    Raises:
        FileNotFoundError: The model or transformers.js is missing.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: The model does not translate or cannot be exported, or `output` is not empty.
    """
    output, library = Path(output), [Path(node_modules) / name for name in LIBRARY_FILES]
    check_free(output)
    for path in library:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: {node_modules} has no transformers.js 4. Install it by `npm install "
                "--ignore-scripts @huggingface/transformers@4`."
            )
    with TemporaryDirectory() as temporary:
        exported = Path(temporary) / "exported"
        _check_translates(Path(source))
        to_transformers_js(source, exported)
        with whole_folder(output) as partial:
            for path in exported.iterdir():
                if path.is_file():
                    _copy(path, partial / "model" / path.name)
            for path in (exported / GRAPHS).glob(f"*{QUANTIZED}.onnx"):
                _copy(path, partial / "model" / GRAPHS / path.name)
            for path in library:
                _copy(path, partial / "library" / path.name)
            for suffix in ("css", "js"):
                _copy(HERE / f"static_page.{suffix}", partial / f"page.{suffix}")
            page = (HERE / "static_page.html").read_text(encoding="utf-8")
            page = page.format(title=escape(title), summary=escape(summary), example=escape(example))
            write_whole(partial / "index.html", page)
            write_whole(partial / "README.md", README.format(title=json.dumps(title)))


def _check_translates(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.")
    architecture = (AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures or [""])[0]
    if architecture != "TriviumForConditionalGeneration":
        raise ValueError(
            f"{folder} holds a {architecture}, but must hold a TriviumForConditionalGeneration: the page translates."
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
