"""Gradio page of the demo: input, generation settings and results."""

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

from .generating import EXTRA_LENGTH, Generation, generate_steps
from .introspect import Inputs, UnfitText, max_length, read
from .judging import answer, classify, fill_masks, is_regression, tag

HERE = Path(__file__).parent
NEW_TOKENS = 100  # default maximum length of a continuation, if the generation config sets none
METHODS = {
    "Greedy": "select the most probable token",
    "Beam search": "keep several hypotheses and return the best",
    "Sampling": "draw tokens from their distribution",
}

Event = dict[str, Any]  # an event for page.js: its `kind` and payload


@dataclass(frozen=True)
class _Labels:
    """Labels of the page for a task."""

    label: str
    button: str
    task: str


TRANSLATE = _Labels("Text to translate", "Translate", "translate")
SUMMARIZE = _Labels("Text to summarize", "Summarize", "summarize")
CONTINUE = _Labels("Prompt", "Continue", "continue")
FILL = _Labels("Text with masks", "Fill", "fill_mask")
CLASSIFY = _Labels("Text to classify", "Classify", "classify")
TAG = _Labels("Text to tag", "Tag", "tag")
ANSWER = _Labels("Question", "Answer", "answer")
ENDINGS = {
    "ForMaskedLM": FILL,
    "ForSequenceClassification": CLASSIFY,
    "ForTokenClassification": TAG,
    "ForQuestionAnswering": ANSWER,
}


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

    The page loads nothing from other servers, sends no analytics, and stores no text.

    Args:
        model: A model that translates, summarizes or continues texts, fills masks, classifies, tags words or finds
            answers; it is switched to eager attention, which returns the weights.
        tokenizer: Its tokenizer.
        title: Title of the page.
        summary: Description of the model, in Markdown.
        examples: Example inputs.
        **options: Arguments of gradio's `launch`: `server_name`, `server_port`, `inbrowser`, `prevent_thread_lock`.

    Returns:
        The page. With `prevent_thread_lock=True`, it is returned immediately, and its `close()` stops the server.

    Raises:
        ValueError: The model supports none of these tasks.
        OSError: The port is in use.
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
        max_file_size=0,  # the page has no uploads, but by default Gradio accepts files of any size
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
    """Build the page without serving it; see `launch`."""
    labels = _labels_of(model)
    generates = labels in (TRANSLATE, SUMMARIZE, CONTINUE)
    model.set_attn_implementation("eager")
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>", elem_id="heading")
        if summary:
            gr.Markdown(summary, elem_id="summary")
        text = gr.Textbox(
            label=labels.label,
            # Enter submits one line; a prompt may have several lines.
            lines=3 if labels is CONTINUE else 1,
            max_lines=8,
            info="Submit with Shift+Enter." if labels is CONTINUE else None,
            elem_id="text",
        )
        if examples:
            gr.Examples([[example] for example in examples], inputs=[text], label="Examples")
        with gr.Row(elem_id="buttons"):
            send = gr.Button(labels.button, variant="primary", scale=3, min_width=120)
            stop = gr.Button("Stop", visible=generates, min_width=80)
            mask = gr.Button(f"Insert {tokenizer.mask_token}", visible=labels is FILL, min_width=120)
        settings = _settings(model, labels) if generates else []
        if labels is ANSWER:
            settings = [gr.Textbox(label="Text that has the answer", lines=6, max_lines=20)]
        drawing = gr.HTML(
            html_template="",
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="drawing",
        )
        handler = _handler(model, tokenizer, labels)
        event = gr.on(
            [send.click, text.submit],
            handler,
            [text, *settings],
            drawing,
            show_progress="hidden",
            api_name=labels.task,
            concurrency_id="model",  # answer one request at a time
        )
        stop.click(None, drawing, drawing, js='value => value + \'{"kind": "stopped"}\\n\'', cancels=[event])
        mask.click(None, text, text, js=f"text => (text + ' ' + {json.dumps(tokenizer.mask_token)}).trim()")
    return page.queue()


def _labels_of(model: PreTrainedModel) -> _Labels:
    if model.can_generate():
        if not model.config.is_encoder_decoder:
            return CONTINUE
        return SUMMARIZE if getattr(model.config, "seq2seq_task", None) == "summarization" else TRANSLATE
    name = type(model).__name__
    for ending, labels in ENDINGS.items():
        if name.endswith(ending):
            return labels
    raise ValueError(
        f"model is a {name}, but the page needs a model that translates or continues texts, fills masks, classifies, "
        "tags words or finds answers."
    )


def _settings(model: PreTrainedModel, labels: _Labels) -> list[gr.components.Component]:
    """Return the controls of the generation settings, in the order of the parameters of `_options`."""
    saved = model.generation_config
    beams = saved.num_beams or 1
    method = "Sampling" if saved.do_sample else "Beam search" if beams > 1 else "Greedy"
    length = min(saved.max_new_tokens or NEW_TOKENS, max_length(model.config))
    with gr.Accordion("Generation settings", open=False):
        choice = gr.Radio(
            [(f"{name}: {description}", name) for name, description in METHODS.items()], value=method, label="Method"
        )
        with gr.Column(visible=method == "Beam search") as for_beams:
            width = gr.Slider(2, max(8, beams), value=beams if beams > 1 else 4, step=1, label="Beams")
        with gr.Column(visible=method == "Sampling") as for_sampling:
            temperature = gr.Slider(
                0.1,
                max(2, saved.temperature or 1),
                value=saved.temperature or 1,
                step=0.05,
                label="Temperature",
                info="Above 1 samples are more random, below 1 less.",
            )
            top_p = gr.Slider(
                0.05,
                1,
                value=saved.top_p or 1,
                step=0.05,
                label="Top p",
                info="Sample from the most probable tokens with this total probability.",
            )
            seed = gr.Number(
                0, label="Seed", info="Equal seeds give equal samples.", precision=0, minimum=0, maximum=2**32 - 1
            )
        new_tokens = gr.Slider(
            1,
            max_length(model.config),
            value=length,
            step=1,
            label="Maximum length of the continuation, in tokens",
            visible=labels is CONTINUE,
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


def _handler(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: _Labels) -> Callable[..., Any]:
    """Return the event handler, which yields all events so far as JSON lines.

    Gradio sends only the suffix of a growing string to the browser; a list of lists would be compared in full at every
    token.
    """
    runs = itertools.count(1)  # gives each answer a unique first line

    def handle(text: str, *settings: Any) -> Iterator[str]:
        lines = _line({"kind": "begin", "run": next(runs)})
        for event in events(text, *settings):
            lines += _line(event)
            yield lines

    def events(text: str, *settings: Any) -> Iterator[Event]:
        try:
            inputs = read(model, tokenizer, text)
            if labels is FILL:
                yield {"kind": "fillings", "fillings": fill_masks(model, tokenizer, inputs)}
            elif labels is CLASSIFY:
                yield {"kind": "labels", "labels": classify(model, inputs), "is_number": is_regression(model)}
            elif labels is ANSWER:
                texts = [part.encode(errors="replace").decode() for part in (text, *settings)]
                yield {"kind": "answers", "answers": answer(model, tokenizer, *texts)}
            elif labels is TAG:
                yield {"kind": "tags", "tags": tag(model, tokenizer, text.encode(errors="replace").decode())}
            else:
                yield {"kind": "read", "pieces": [asdict(piece) for piece in inputs.pieces]}
                states = generate_steps(model, tokenizer, inputs, **_options(model, inputs, *settings))
                yield from _events(states)
        except UnfitText as problem:
            yield {"kind": "problem", "message": str(problem)}
        except Exception:
            yield {"kind": "problem", "message": "An error occurred. See the log of the server."}
            raise

    return handle


def _line(event: Event) -> str:
    # Escape "<": Gradio warns about possible scripts.
    return json.dumps(event, ensure_ascii=False).replace("<", "\\u003c") + "\n"


def _events(states: Iterator[Generation]) -> Iterator[Event]:
    """Yield a `step` event for each token, then an `end` event."""
    done = 0
    for state in states:
        for step in state.steps[done:]:
            yield {"kind": "step", **asdict(step), "attention": [round(weight, 4) for weight in step.attention]}
        done = len(state.steps)
        if state.is_complete:
            yield {"kind": "end", "beams": state.beams}


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
    """Return the arguments of `generate()`."""
    limit, num_inputs = max_length(model.config), len(inputs.input_ids)
    if model.config.is_encoder_decoder:
        length = min(num_inputs + EXTRA_LENGTH, limit)
    else:
        length = min(new_tokens, limit - num_inputs)
    options: dict[str, Any] = {"max_new_tokens": length, "num_beams": 1, "do_sample": False}
    if method == "Beam search":
        options["num_beams"] = beams
    elif method == "Sampling":
        torch.manual_seed(seed or 0)
        # Gradio passes whole numbers as int, which generate() rejects.
        options |= {"do_sample": True, "top_k": 0, "temperature": float(temperature), "top_p": float(top_p)}
    return options


def _theme() -> gr.themes.Base:
    """Return Gradio's default theme with system fonts and accessible contrast."""
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
