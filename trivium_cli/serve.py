"""Serving command: `trivium serve`, with the HTTP APIs of LibreTranslate and OpenAI."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium_cli.common import Beams, Model, architecture_of, check_saved_model, load, report_errors
from trivium_cli.texts import Engine, load_for_engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trivium.serving import Pair

commands = typer.Typer()

PACKAGES = ("babel", "bs4", "fastapi", "prometheus_client", "python_multipart", "uvicorn")

MAX_CONNECTIONS = 1000  # further connections are answered with status 503


@commands.command(epilog="Example: `trivium serve runs/numbers --pair en:de --engine ctranslate2`")
def serve(
    model: Model,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            help="Language pair, such as en:de; en:de=TAG puts a tag in front of every text. Repeatable; by default "
            "the two languages of the model card.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model in OpenAI's interface; by default the name of the folder.", show_default=False
        ),
    ] = None,
    engine: Engine = "torch",
    beams: Beams = None,
    host: Annotated[
        str,
        typer.Option(help="Network interface to listen on; 0.0.0.0 opens the service to your network."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 5000,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File with one accepted API key per line.", exists=True, dir_okay=False),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Origin whose pages may call the service from a browser. Repeatable."),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request in bytes.")] = 256 * 1024,
    max_characters: Annotated[int, typer.Option(min=1, help="Maximum number of characters of a request.")] = 20_000,
    max_texts: Annotated[
        int, typer.Option(min=1, help="Maximum number of texts of a request; lines and text nodes count.")
    ] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of a text.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of a continuation.")] = 256,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a request is answered with status 504.")] = 60,
    queue: Annotated[
        int, typer.Option(min=1, help="Number of texts that may wait; further requests get status 429.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Maximum number of texts per batch.")] = 32,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Log texts and translations.")] = False,
) -> None:
    """Serve a model over HTTP.

    A translation model is served through LibreTranslate's API; a language model through OpenAI's completions and chat
    APIs; an encoder through OpenAI's embeddings API.

    Texts of concurrent requests are batched. On SIGTERM or Ctrl-C, the server finishes all accepted requests and
    stops.
    """
    with report_errors():
        if missing := [name for name in PACKAGES if find_spec(name) is None]:
            raise ValueError(
                f"`trivium serve` needs {', '.join(missing)}, which is not installed: `pip install 'trivium[serve]'`."
            )
        import logging

        import uvicorn

        from trivium.serving import Embedder, Keys, Languages, Limits, Pair, Translator, Writer, create_app

        limits = Limits(
            body_bytes=max_body,
            characters=max_characters,
            texts=max_texts,
            tokens=max_tokens,
            new_tokens=max_new_tokens,
            timeout=timeout,
            queue=queue,
            batch=batch_size,
        )
        keys = Keys.from_file(api_keys) if api_keys else Keys()
        architecture = architecture_of(check_saved_model(model))
        languages = None
        served: Translator | Writer | Embedder
        if engine != "torch" or architecture.endswith("ForConditionalGeneration"):
            languages = Languages([Pair.parse(pair) for pair in pairs] if pairs else [_pair_of_card(model)])
            loaded, tokenizer = load(model, "translate") if engine == "torch" else load_for_engine(model, engine)
            served = Translator(loaded, tokenizer, limits.tokens, beams)
        elif architecture.endswith("ForCausalLM"):
            served = Writer(*load(model, "generate"), limits.tokens, limits.new_tokens)
        else:
            served = Embedder(*_load_encoder(model), limits.tokens)
        app = create_app(
            served,
            languages,
            name=name or model.resolve().name,
            limits=limits,
            keys=keys,
            cors_origins=cors_origins or (),
            log_texts=log_texts,
        )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        # uvicorn's access log would contain the query string, which may include texts and keys.
        uvicorn.run(
            app,
            host=host,
            port=port,
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
        )


def _pair_of_card(model: Path) -> "Pair":
    """Return the language pair stated in the model card.

    Raises:
        ValueError: The card does not have two languages.
    """
    from trivium.hub.card import introduce
    from trivium.serving import Pair

    try:
        languages = introduce(model).languages
    except (OSError, ValueError):  # folders for other engines have no model card
        languages = []
    if len(languages) != 2:
        raise ValueError(
            f"The model card of {model} has the languages {languages}, but must have source and target. Pass --pair, "
            "such as --pair en:de."
        )
    return Pair(*languages)


def _load_encoder(model: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load the encoder of an encoder-only model, without its head."""
    from transformers import AutoTokenizer

    from trivium import TriviumEncoderModel

    encoder = TriviumEncoderModel.from_pretrained(model).eval()
    return encoder, AutoTokenizer.from_pretrained(model)
