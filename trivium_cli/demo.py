"""The command that shows a model in a browser: `trivium demo`."""

from importlib.util import find_spec
from typing import Annotated

import typer

from trivium_cli.common import Model, check_saved_model, load, mistakes_explained

commands = typer.Typer()


@commands.command(epilog="Example: `trivium demo runs/numbers --open`")
def demo(
    model: Model,
    host: Annotated[str, typer.Option(help="Who can reach the page: with 0.0.0.0 all of your network.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860.", show_default=False)
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in your browser.")] = False,
) -> None:
    """Serve a page to try a model on.

    A translator or a language model shows each token as it is written, what else it could have been, and where the
    model looked; an encoder fills masks or tells its labels. The page loads nothing from elsewhere, tells nobody, and
    keeps no text. Ctrl-C ends it.

    `trivium push --space` puts the same page on the Hub.
    """
    with mistakes_explained():
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
        typer.echo(f"The page is {page.local_url}. Ctrl-C ends it.")
        page.block_thread()
