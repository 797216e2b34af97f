"""Serving command: `trivium serve`, with the HTTP APIs of LibreTranslate and OpenAI."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium_cli.common import Model, architecture_of, check_saved_model, load, report_errors
from trivium_cli.decoding import Beams
from trivium_cli.translators import Engine, load_translator

if TYPE_CHECKING:
    from fastapi import FastAPI
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trivium.serving import Keys, Languages, Limits, Pair

commands = typer.Typer()

PACKAGES = ("babel", "bs4", "fastapi", "prometheus_client", "python_multipart", "uvicorn")

MAX_CONNECTIONS = 1000  # per worker; requests on further connections are answered with status 503
# Longer than clients and proxies usually keep idle connections (5 to 60 seconds), because a request that is sent while
# the service closes its connection is lost.
KEEP_ALIVE_SECONDS = 75
# A worker that hangs for so long is replaced. A new worker answers its supervisor after half a second of CPU time, for
# which it may have to wait on a busy machine.
UNRESPONSIVE_SECONDS = 60


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
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes that each load the model; a process that dies is replaced.")
    ] = 1,
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
        import uvicorn

        service = _Service(
            model=model,
            engine=engine,
            beams=beams,
            pairs=pairs or (),
            name=name or model.resolve().name,
            api_keys=api_keys,
            cors_origins=cors_origins or (),
            log_texts=log_texts,
            limits={
                "body_bytes": max_body,
                "characters": max_characters,
                "texts": max_texts,
                "tokens": max_tokens,
                "new_tokens": max_new_tokens,
                "timeout": timeout,
                "queue": queue,
                "batch": batch_size,
            },
        )
        # uvicorn's access log would contain the query string, which may include texts and keys.
        options: dict[str, Any] = {
            "host": host,
            "port": port,
            "access_log": False,
            "log_config": None,
            "server_header": False,
            "limit_concurrency": MAX_CONNECTIONS,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        }
        if workers == 1:
            uvicorn.run(service.create_app(), **options)
        else:
            _supervise(service, workers, options)


@dataclass(frozen=True)
class _Service:
    """Options of a service.

    Workers receive them by pickle. They have only plain types, because unpickling a class of `trivium.serving` would
    import torch before the worker can answer its supervisor.
    """

    model: Path
    engine: Engine
    beams: int | None
    pairs: Sequence[str]
    name: str
    api_keys: Path | None
    cors_origins: Sequence[str]
    log_texts: bool
    limits: dict[str, Any]

    def check(self) -> "tuple[Limits, Keys, Languages | None]":
        """Check the options and the model's files without loading the model; return the parsed options.

        Raises:
            OSError: There is no saved model, or the keys cannot be read.
            ValueError: An option has an invalid value, or a file of the model is corrupt.
        """
        from trivium.serving import Keys, Languages, Limits, Pair

        limits = Limits(**self.limits)
        keys = Keys.from_file(self.api_keys) if self.api_keys else Keys()
        languages = None
        if self.engine != "torch" or self._architecture().endswith("ForConditionalGeneration"):
            languages = Languages([Pair.parse(pair) for pair in self.pairs] or [_pair_of_card(self.model)])
        return limits, keys, languages

    def create_app(self) -> "FastAPI":
        """Load the model and return the application.

        Raises:
            OSError, ValueError: As for `check`, or the model cannot be served with this engine.
        """
        import logging

        from trivium.serving import Embedder, Translator, Writer, create_app

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        limits, keys, languages = self.check()
        served: Translator | Writer | Embedder
        if languages is not None:
            served = Translator(*load_translator(self.model, self.engine), limits.tokens, self.beams)
        elif self._architecture().endswith("ForCausalLM"):
            served = Writer(*load(self.model, "generate"), limits.tokens, limits.new_tokens)
        else:
            served = Embedder(*_load_encoder(self.model), limits.tokens)
        return create_app(
            served,
            languages,
            name=self.name,
            limits=limits,
            keys=keys,
            cors_origins=self.cors_origins,
            log_texts=self.log_texts,
        )

    def create_in_worker(self) -> "FastAPI":
        """Return the application, or end the worker with the status that makes its supervisor stop."""
        from uvicorn.config import STARTUP_FAILURE

        from trivium.serving.supervisor import end_with_supervisor

        end_with_supervisor()
        try:
            with report_errors():
                return self.create_app()
        except typer.Exit:
            raise SystemExit(STARTUP_FAILURE) from None

    def _architecture(self) -> str:
        return architecture_of(check_saved_model(self.model))


def _supervise(service: _Service, workers: int, options: dict[str, Any]) -> None:
    """Serve with several worker processes that share the port; replace a worker that dies or hangs."""
    import logging

    import uvicorn
    from uvicorn.config import STARTUP_FAILURE

    from trivium.serving.supervisor import Supervisor

    service.check()  # report errors once, not in every worker
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = uvicorn.Config(
        service.create_in_worker,
        factory=True,
        workers=workers,
        timeout_worker_healthcheck=UNRESPONSIVE_SECONDS,
        **options,
    )
    with TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # the workers add up their metrics in its files
        supervisor = Supervisor(config, sockets=[config.bind_socket()])
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise typer.Exit(1)


def _pair_of_card(model: Path) -> "Pair":
    """Return the language pair stated in the model card.

    Raises:
        PermissionError: A file of the model cannot be read.
        ValueError: The card does not have two languages.
    """
    from trivium.hub.card import introduce
    from trivium.serving import Pair

    try:
        languages = introduce(model).languages
    except PermissionError:
        raise
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
