"""Test the demo page in a real browser: display, keyboard and touch operation, and network requests."""

import re
import shutil
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import torch
from tiny import tiny_model
from transformers import PreTrainedModel

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumTokenizer,
)
from trivium.demo import launch
from trivium.tokenization import train_tokenizer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

expect.set_options(timeout=60_000)  # Generous timeout in case the machine is heavily loaded.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: on Debian, apt-get install chromium"),
]

SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
TEXTS = ["the cat sat on the mat.", "two dogs ran across the road.", "مرحبا بالعالم", "早上好"] * 2
HTML = (
    "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>${1}{{value}}`"
)
EXTRA = 3  # Maximum number of tokens by which a translation may exceed the length of the text.
WORDS = {
    TriviumForConditionalGeneration: "Translate",
    TriviumForCausalLM: "Continue",
    TriviumForMaskedLM: "Fill",
    TriviumForSequenceClassification: "Classify",
    TriviumForTokenClassification: "Tag",
}


@pytest.fixture(scope="module", autouse=True)
def _short_translations() -> Iterator[None]:
    """Limit translations: an untrained model would generate up to the maximum length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trivium.demo.page.EXTRA_LENGTH", EXTRA)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as starter:
        # Without a user data directory, the browser uses a temporary profile.
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS, vocab_size=400)


def model_of(kind: type[PreTrainedModel], tokenizer: TriviumTokenizer, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_model(kind, vocab_size=len(tokenizer), max_position_embeddings=600, **overrides).float()


@pytest.fixture(scope="module")
def translator(tokenizer: TriviumTokenizer) -> PreTrainedModel:
    return model_of(TriviumForConditionalGeneration, tokenizer)


@pytest.fixture(scope="module")
def url(translator: PreTrainedModel, tokenizer: TriviumTokenizer) -> Iterator[str]:
    """Serve the page of a translator and return its URL."""
    page = launch(
        translator,
        tokenizer,
        title=f"A {HTML} title",
        summary="It *invents*.",
        examples=["two dogs", HTML],
        prevent_thread_lock=True,
        quiet=True,
    )
    yield page.local_url
    page.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Open a page that fails the test on any error and on any request to another server."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    hosts, errors = set(), []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    yield page
    assert hosts - {""} == {urlsplit(url).netloc}, "`` is for data: and blob:"
    assert errors == []
    context.close()


def forget(page: Page) -> None:
    """Clear the previous answer, so that the next wait cannot match it."""
    page.evaluate("document.querySelector('#drawing .drawing')?.remove()")


def send(page: Page, text: str, until: str = "Finished", button: str = "Translate") -> Locator:
    """Type a text, send it, and wait for the text that marks completion."""
    forget(page)
    page.get_by_role("textbox").first.fill(text)
    page.get_by_role("button", name=button, exact=True).click()
    drawing = page.locator("#drawing")
    expect(drawing).to_contain_text(until)
    return drawing


def expect_weights(page: Page, expected: torch.Tensor) -> None:
    """Wait until the shading of the source tokens shows the attention weights `expected`."""
    page.wait_for_function(
        """expected => {
            const chips = [...document.querySelectorAll('[role=listbox][aria-label="Input tokens"] [role=option]')]
            const weights = chips.map(chip => Number(chip.style.getPropertyValue('--weight') || 0))
            return weights.length === expected.length && weights.every((w, i) => Math.abs(w - expected[i]) < 1e-3)
        }""",
        arg=expected.tolist(),
        timeout=60_000,
    )


@torch.no_grad()
def test_translation_with_alternatives_and_attention(
    page: Page, translator: PreTrainedModel, tokenizer: TriviumTokenizer
) -> None:
    inputs = tokenizer("the cat sat", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    ids = translator.generate(**inputs, max_new_tokens=length + EXTRA, max_length=None)[0]
    whole = translator(**inputs, decoder_input_ids=ids[None, :-1], output_attentions=True)
    attention = whole.cross_attentions[-1][0].mean(0)

    drawing = send(page, "the cat sat")
    result = tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    expect(drawing.locator(".result")).to_have_text(result)
    written = page.get_by_role("listbox", name="Output tokens").get_by_role("option")
    expect(written).to_have_count(len(ids) - 1)
    expect_weights(page, attention[0])  # The page shows the attention of the first token before any click.

    written.nth(2).hover()
    expect_weights(page, attention[2])
    shares = drawing.locator(".shares").first.locator("tr")
    best = whole.logits[0, 2].softmax(-1).max().item()
    expect(shares).to_have_count(6)
    expect(shares.first).to_contain_text(re.compile(rf"{100 * best:.0f} %|{100 * best:.1f} %"))
    expect(shares.first).to_contain_text("✓")  # The page decodes greedily.

    page.mouse.move(0, 0)
    # By keyboard, Enter sends the text, each list is a single tab stop, and arrow keys move within a list.
    forget(page)
    page.get_by_role("textbox").first.focus()
    page.keyboard.press("Enter")
    expect(drawing).to_contain_text("Finished")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    for key, place in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(ids) - 2), ("Home", 0)]:
        page.keyboard.press(key)
        expect(written.nth(place)).to_be_focused()
        expect_weights(page, attention[place])
    page.keyboard.press("Tab")
    expect(page.get_by_role("listbox", name="Input tokens").get_by_role("option").first).to_be_focused()
    expect(drawing.locator("#details")).to_contain_text("Input token:")


@pytest.mark.slow(reason="a page of its own in the browser")
def test_typed_text_is_never_markup(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(f"A {HTML} title")
    drawing = send(page, HTML)
    pieces = page.get_by_role("listbox", name="Input tokens").locator(".text").all_text_contents()
    assert "".join(pieces[:-1]).replace("␣", " ") == HTML
    assert drawing.locator("img, script").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert "broken" not in page.title().removeprefix(f"A {HTML} title")


@pytest.mark.slow
def test_invalid_texts_show_a_message(page: Page) -> None:
    for text, words in [
        (" ", "The text is empty"),
        ("<b>" * 33_333 + "x", "has 100,000 characters, but at most 10,000 are allowed"),
        ("早" * 3_000, "tokens, but at most 512 are allowed"),
    ]:
        send(page, text, words)
        expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
    send(page, "cat")


@pytest.mark.slow
def test_beams_and_sampling(page: Page, translator: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    page.get_by_role("button", name="Generation settings").click()
    page.get_by_label("Beam search").check()
    drawing = send(page, "the cat")
    inputs = tokenizer("the cat", return_tensors="pt")
    ids = translator.generate(
        **inputs, max_new_tokens=inputs["input_ids"].shape[1] + EXTRA, max_length=None, num_beams=4
    )
    expect(drawing.locator(".beams li")).to_have_count(4)
    best = tokenizer.decode(ids[0], skip_special_tokens=True)
    expect(drawing.locator(".beams bdi").first).to_have_text(best)
    page.get_by_label("Sampling").check()
    page.get_by_label("number input for Temperature").fill("2")
    first = send(page, "the cat").locator(".result").text_content()
    again = send(page, "the cat").locator(".result").text_content()
    page.get_by_label("Seed").fill("1")
    other = send(page, "the cat").locator(".result").text_content()
    assert first == again != other


@pytest.mark.slow
def test_axe_finds_no_violations_wide_and_narrow(page: Page) -> None:
    page.get_by_role("button", name="Generation settings").click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.reload()
        send(page, "the cat sat on the mat")
        found = Axe().run(page).response["violations"]
        assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == []
    page.set_viewport_size({"width": 320, "height": 640})
    send(page, "x" * 100 + " the cat" * 40)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 320, "nothing has to be moved sideways"
    height = page.get_by_role("listbox", name="Input tokens").bounding_box()["height"]
    assert height < 640 / 2, "a long list scrolls by itself"


def test_right_to_left_text(page: Page) -> None:
    send(page, "مرحبا بالعالم")
    places = page.get_by_role("listbox", name="Input tokens").get_by_role("option")
    boxes = [places.nth(i).bounding_box()["x"] for i in range(2)]
    assert boxes[0] > boxes[1]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(TriviumForCausalLM, marks=pytest.mark.slow),
        pytest.param(TriviumForMaskedLM, marks=pytest.mark.slow),
        pytest.param(TriviumForSequenceClassification, marks=pytest.mark.slow),
        pytest.param(TriviumForTokenClassification, marks=pytest.mark.slow),
    ],
)
def test_pages_of_other_architectures(
    browser: Browser, kind: type[PreTrainedModel], tokenizer: TriviumTokenizer
) -> None:
    labels = {"id2label": {0: HTML, 1: "two"}, "label2id": {HTML: 0, "two": 1}}
    overrides = labels if kind in (TriviumForSequenceClassification, TriviumForTokenClassification) else {}
    model = model_of(kind, tokenizer, **overrides)
    served = launch(model, tokenizer, title="T", prevent_thread_lock=True, quiet=True)
    page = browser.new_page()
    page.goto(served.local_url)
    page.get_by_role("textbox").first.fill("the cat")
    if kind is TriviumForMaskedLM:
        page.get_by_role("button", name="Insert <mask>").click()
        expect(page.get_by_role("textbox").first).to_have_value("the cat <mask>")
    page.get_by_role("button", name=WORDS[kind], exact=True).click()
    if kind is TriviumForCausalLM:
        expect(page.locator(".status")).to_contain_text("Finished")
        expect(page.get_by_role("listbox", name="Output tokens").get_by_role("option").first).to_be_visible()
    else:
        table = page.get_by_role("table")
        expect(table).to_be_visible()
        expect(table.locator("tr")).to_have_count(8 if kind is TriviumForMaskedLM else 2)
        if overrides:
            expect(table).to_contain_text(re.compile(f"{re.escape(HTML)}|two"))
            assert page.locator("img[src=x]").count() == 0
    page.close()
    served.close()


@pytest.mark.slow
def test_stop_button(browser: Browser, tokenizer: TriviumTokenizer) -> None:
    """The stop button must end a long generation both on the page and in the model."""
    model = model_of(TriviumForCausalLM, tokenizer)
    # Generation would otherwise continue.
    model.generation_config.update(eos_token_id=None, max_new_tokens=500)
    calls = []

    def slowly(*_: object) -> None:
        calls.append(time.sleep(0.03))

    model.register_forward_pre_hook(slowly)
    served = launch(model, tokenizer, title="T", prevent_thread_lock=True, quiet=True)
    page = browser.new_page()
    page.goto(served.local_url)
    page.get_by_role("textbox").first.fill("the cat")
    page.get_by_role("button", name="Continue", exact=True).click()
    written = page.get_by_role("listbox", name="Output tokens").get_by_role("option")
    expect(written.nth(4)).to_be_visible()
    expect(page.locator(".status")).to_have_text("Generating …")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".status")).to_contain_text("Stopped after")
    seen = -1
    while seen != len(calls):  # Under load, the model may stop much later than the page.
        seen = len(calls)
        page.wait_for_timeout(2000)
    assert seen < 500
    page.close()
    served.close()
