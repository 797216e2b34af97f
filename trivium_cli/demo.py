"""Demo command: `trivium demo`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from trivium_cli.common import Model, check_saved_model, load, report_errors

commands = typer.Typer()


@commands.command(epilog="Example: `trivium demo runs/numbers --open`")
def demo(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Network interface to listen on; 0.0.0.0 makes the page reachable from your network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port to listen on; by default the first free one from 7860.", show_default=False
        ),
    ] = None,
    static: Annotated[
        Path | None,
        typer.Option(
            help="Instead, write a page that translates in the browser to this new or empty folder.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[Path, typer.Option(help="With --static: node_modules, with transformers.js from npm.")] = Path(
        "node_modules"
    ),
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a web demo of a model.

    For a translation or language model, the page streams the generated tokens with their alternatives and attention;
    an encoder fills masks, predicts labels, tags words or answers. The page loads no external resources, sends no data
    elsewhere and stores no text. Press Ctrl-C to stop it.

    `trivium push --space` publishes the same page on the Hub. With --static, the model runs in the browser instead,
    and any web server or a static Space can serve the folder.
    """
    with report_errors():
        if static is not None:
            _write_static(model, static, library)
            return
        if find_spec("gradio") is None:
            raise ValueError("`trivium demo` needs gradio, which is not installed: `pip install gradio`.")
        if (model_type := check_saved_model(model).get("model_type")) != "trivium":
            raise ValueError(f"{model} holds a model of model_type {model_type!r}, but must hold a Trivium model.")
        loaded, tokenizer = load(model)
        from trivium.demo import launch
        from trivium.hub.card import introduce

        introduction = introduce(model)
        page = launch(
            loaded,
            tokenizer,
            title=introduction.title,
            summary=introduction.summary,
            examples=introduction.examples,
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            quiet=True,
            prevent_thread_lock=True,
        )
        typer.echo(f"The page is {page.local_url}. Press Ctrl-C to stop it.")
        page.block_thread()


def _write_static(model: Path, output: Path, library: Path) -> None:
    check_saved_model(model)
    from trivium.hub.card import introduce
    from trivium.interop.static_page import write_static_page

    introduction = introduce(model)
    examples = [*introduction.examples, ""]
    try:
        write_static_page(
            model, output, library, title=introduction.title, summary=introduction.summary, example=examples[0]
        )
    except ImportError as error:  # raised if an optional dependency is not installed
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"The page is in {output}. Serve it with `python -m http.server --directory {output}`.")
