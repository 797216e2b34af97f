"""The page: what is typed, how the model shall write, and what came of it."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .generating import EXTRA_LENGTH, Writing, write
from .introspect import Inputs, UnfitText, longest, read
from .judging import classify, fill_masks, is_regression

HERE = Path(__file__).parent
NEW_TOKENS = 100  # of a continuation, unless the model says how many
METHODS = {
    "Greedy": "always the likeliest token",
    "Beam search": "the likeliest text that several attempts find",
    "Sampling": "tokens drawn by their probability",
}

Event = dict[str, Any]  # something that page.js draws: its `kind`, and what there is to tell


@dataclass(frozen=True)
class _Words:
    """What the page calls what it does."""

    label: str
    button: str
    task: str


TRANSLATE = _Words("Text to translate", "Translate", "translate")
CONTINUE = _Words("Beginning of a text", "Continue", "continue")
FILL = _Words("Text with masks", "Fill", "fill_mask")
CLASSIFY = _Words("Text to classify", "Classify", "classify")


def launch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    title: str,
    summary: str = "",
    examples: Sequence[str] = (),
    **options: Any,
) -> gr.Blocks:
    """Serve the page until Ctrl-C.

    Nothing of it comes from elsewhere, nothing is told to anybody, and no text is kept.

    Args:
        model: It translates, continues, fills masks or classifies; its attention becomes the eager one, which is seen.
        tokenizer: Its tokenizer.
        title: What it is called.
        summary: A sentence on what it does, in Markdown.
        examples: Texts to try it with.
        **options: Of gradio's `launch`: `server_name`, `server_port`, `inbrowser`, `prevent_thread_lock`.

    Returns:
        The page, with `prevent_thread_lock=True`; `close()` ends it.

    Raises:
        ValueError: The model does none of these.
        OSError: The port is taken.
    """
    page = build(model, tokenizer, title=title, summary=summary, examples=examples)
    page.launch(
        theme=_theme(),
        css_paths=[HERE / "page.css"],
        footer_links=[],
        run_history=False,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=0,  # nothing is uploaded, but Gradio would take files of any size
        **options,
    )
    return page


def build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    title: str,
    summary: str = "",
    examples: Sequence[str] = (),
) -> gr.Blocks:
    """The page, not yet served; see `launch`."""
    words = _words(model)
    writes = words in (TRANSLATE, CONTINUE)
    model.set_attn_implementation("eager")
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>", elem_id="heading")
        if summary:
            gr.Markdown(summary, elem_id="summary")
        text = gr.Textbox(
            label=words.label,
            # A translation is sent with Enter; a continuation may begin with several lines.
            lines=3 if words is CONTINUE else 1,
            max_lines=8,
            info="Shift+Enter sends it." if words is CONTINUE else None,
            elem_id="text",
        )
        if examples:
            gr.Examples([[example] for example in examples], inputs=[text], label="Examples")
        with gr.Row(elem_id="buttons"):
            send = gr.Button(words.button, variant="primary", scale=3, min_width=120)
            stop = gr.Button("Stop", visible=writes, min_width=80)
            mask = gr.Button(f"Insert {tokenizer.mask_token}", visible=words is FILL, min_width=120)
        settings = _settings(model, words) if writes else []
        drawing = gr.HTML(
            html_template="",
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="drawing",
        )
        answer = _answer(model, tokenizer, words)
        event = gr.on(
            [send.click, text.submit],
            answer,
            [text, *settings],
            drawing,
            show_progress="hidden",
            api_name=words.task,
            concurrency_id="model",  # one text at a time
        )
        stop.click(None, drawing, drawing, js='told => told + \'{"kind": "stopped"}\\n\'', cancels=[event])
        mask.click(None, text, text, js=f"text => (text + ' ' + {json.dumps(tokenizer.mask_token)}).trim()")
    return page.queue()


def _words(model: PreTrainedModel) -> _Words:
    if model.can_generate():
        return TRANSLATE if model.config.is_encoder_decoder else CONTINUE
    name = type(model).__name__
    for ending, words in (("ForMaskedLM", FILL), ("ForSequenceClassification", CLASSIFY)):
        if name.endswith(ending):
            return words
    raise ValueError(f"model is a {name}: there is a page for what translates, continues, fills masks or classifies.")


def _settings(model: PreTrainedModel, words: _Words) -> list[gr.components.Component]:
    """The controls for how the model writes, in the order in which `_options` takes them."""
    saved = model.generation_config
    beams = saved.num_beams or 1
    method = "Sampling" if saved.do_sample else "Beam search" if beams > 1 else "Greedy"
    length = min(saved.max_new_tokens or NEW_TOKENS, longest(model.config))
    with gr.Accordion("How it writes", open=False):
        choice = gr.Radio([(f"{name}: {what}", name) for name, what in METHODS.items()], value=method, label="Method")
        with gr.Column(visible=method == "Beam search") as for_beams:
            width = gr.Slider(2, max(8, beams), value=beams if beams > 1 else 4, step=1, label="Beams")
        with gr.Column(visible=method == "Sampling") as for_sampling:
            temperature = gr.Slider(
                0.1,
                max(2, saved.temperature or 1),
                value=saved.temperature or 1,
                step=0.05,
                label="Temperature",
                info="Above 1 is bolder, below 1 safer.",
            )
            top_p = gr.Slider(
                0.05,
                1,
                value=saved.top_p or 1,
                step=0.05,
                label="Top p",
                info="Only from the likeliest tokens that make up so much.",
            )
            seed = gr.Number(
                0, label="Seed", info="The same seed draws the same.", precision=0, minimum=0, maximum=2**32 - 1
            )
        new_tokens = gr.Slider(
            1,
            longest(model.config),
            value=length,
            step=1,
            label="Longest continuation, in tokens",
            visible=words is CONTINUE,
        )
    choice.change(
        lambda name: [gr.update(visible=name == "Beam search"), gr.update(visible=name == "Sampling")],
        choice,
        [for_beams, for_sampling],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    return [choice, width, temperature, top_p, seed, new_tokens]


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: _Words) -> Callable[..., Any]:
    """What happens to a text: events, as lines of JSON, each time all that there were so far.

    A text that grows goes to the browser piece by piece, and costs it little; a list of lists would be compared as a
    whole at every token.
    """
    runs = itertools.count(1)  # no two answers begin alike

    def answer(text: str, *settings: Any) -> Iterator[str]:
        told = _line({"kind": "begin", "run": next(runs)})
        for event in events(text, *settings):
            told += _line(event)
            yield told

    def events(text: str, *settings: Any) -> Iterator[Event]:
        try:
            inputs = read(model, tokenizer, text)
            if words is FILL:
                yield {"kind": "fillings", "fillings": fill_masks(model, tokenizer, inputs)}
            elif words is CLASSIFY:
                yield {"kind": "labels", "labels": classify(model, inputs), "is_number": is_regression(model)}
            else:
                yield {"kind": "read", "pieces": [asdict(piece) for piece in inputs.pieces]}
                writings = write(model, tokenizer, inputs, **_options(model, inputs, *settings))
                yield from _events(writings)
        except UnfitText as problem:
            yield {"kind": "problem", "message": str(problem)}
        except Exception:
            yield {"kind": "problem", "message": "Something went wrong; the server's log says what."}
            raise

    return answer


def _line(event: Event) -> str:
    # Gradio warns of what might be a script.
    return json.dumps(event, ensure_ascii=False).replace("<", "\\u003c") + "\n"


def _events(writings: Iterator[Writing]) -> Iterator[Event]:
    """A `step` for each token, and the `end`."""
    done = 0
    for writing in writings:
        for step in writing.steps[done:]:
            yield {"kind": "step", **asdict(step), "attention": [round(weight, 4) for weight in step.attention]}
        done = len(writing.steps)
        if writing.is_complete:
            yield {"kind": "end", "beams": writing.beams}


def _options(
    model: PreTrainedModel,
    inputs: Inputs,
    method: str,
    beams: int,
    temperature: float,
    top_p: float,
    seed: int,
    new_tokens: int,
) -> dict[str, Any]:
    """What `generate()` takes."""
    room, read = longest(model.config), len(inputs.input_ids)
    length = min(read + EXTRA_LENGTH, room) if model.config.is_encoder_decoder else min(new_tokens, room - read)
    options: dict[str, Any] = {"max_new_tokens": length, "num_beams": 1, "do_sample": False}
    if method == "Beam search":
        options["num_beams"] = beams
    elif method == "Sampling":
        torch.manual_seed(seed or 0)
        # A whole number comes as an int, which generate() refuses.
        options |= {"do_sample": True, "top_k": 0, "temperature": float(temperature), "top_p": float(top_p)}
    return options


def _theme() -> gr.themes.Base:
    """Gradio's own, with fonts that are there already, and with contrasts that everybody can read."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
