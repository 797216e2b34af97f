"""Test that the static page translates in Chromium without requests to any other server."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from paths import ROOT
from tiny import tiny_model

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.interop.static_page import LIBRARY_FILES, write_static_page
from trivium.tokenization import train_tokenizer

TEXTS = ["a cat sat on the mat", "two dogs", '<b>birds</b> & "bees" {title}']
NODE_MODULES = ROOT / "build" / "node" / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def translator(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    model = tiny_model(TriviumForConditionalGeneration, std=0.3, vocab_size=len(tokenizer), decoder_layers=1).float()
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.browser
def test_page_translates_in_the_browser(translator: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None or not NODE_MODULES.is_dir():
        pytest.skip("there is no Chromium or transformers.js: see `make runtimes`")
    page_folder = tmp_path / "page"
    write_static_page(
        translator, page_folder, NODE_MODULES, title=TEXTS[2], summary="It translates.", example=TEXTS[0]
    )
    assert sorted(path.name for path in page_folder.iterdir()) == [
        *("README.md", "index.html", "library", "model", "page.css", "page.js"),
    ]
    handler = partial(SimpleHTTPRequestHandler, directory=str(page_folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    hosts, errors = set[str](), list[str]()
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        playwright.expect(page.get_by_role("heading", level=1)).to_have_text(TEXTS[2])
        assert page.get_by_role("textbox").input_value() == TEXTS[0]
        status = page.locator("#status")
        playwright.expect(status).to_have_text("Ready.", timeout=240_000)
        page.get_by_role("textbox").fill("two dogs\n\na cat")
        page.get_by_role("button", name="Translate").click()
        playwright.expect(status).to_have_text("Finished.", timeout=120_000)
        lines = page.locator("#translation").inner_text().split("\n")
        browser.close()
    server.shutdown()
    assert errors == []
    assert hosts == {urlsplit(url).netloc}
    assert lines[1] == ""
    assert all(lines[::2])


def test_missing_library_is_refused(translator: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"transformers\.min\.js does not exist.*npm install"):
        write_static_page(translator, tmp_path / "page", tmp_path, title="")
    assert not (tmp_path / "page").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    tiny_model(TriviumForCausalLM, encoder_layers=0).save_pretrained(tmp_path / "model")
    for name in LIBRARY_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match="holds a TriviumForCausalLM, but must hold a TriviumForConditionalGeneration"
    ):
        write_static_page(tmp_path / "model", tmp_path / "page", tmp_path, title="")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        write_static_page(tmp_path, tmp_path / "page", tmp_path, title="")
    assert not (tmp_path / "page").exists()
