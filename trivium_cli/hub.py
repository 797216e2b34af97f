"""Commands about publishing: `trivium card`, `trivium push`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from trivium_cli.common import Model, check_saved_model, mistakes_explained

if TYPE_CHECKING:
    from trivium.hub import Push

commands = typer.Typer()


@commands.command(epilog="Example: `trivium card runs/numbers card.license=mit --repo-id someone/numbers`")
def card(
    model: Model,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="What the card is to say: `card.field=value` ...", show_default=False),
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(help="What the model will be called on the Hub; by default as its folder.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a README.md that a person wrote.")] = False,
) -> None:
    """Write the model card, README.md, into a model's folder, from what its run recorded.

    The fields are `title`, `summary`, `license`, `languages`, `datasets`, `examples`, `intended_use` and
    `limitations`, as in the `card:` section of a recipe. The first of the examples is drawn, too: `attention.png`
    shows where the model looks.

    `trivium push` makes the same card by itself. Write one here to see it before, or to go on from it.
    """
    with mistakes_explained():
        check_saved_model(model)
        from trivium.hub.card import CARD_FILE, MARK, has_own_card, render_card
        from trivium.storage.atomic import write_whole
        from trivium.storage.manifest import record

        if has_own_card(model) and not overwrite:
            raise ValueError(f"{model / CARD_FILE} was written by a person: --overwrite replaces it.")
        files = render_card(model, repo_id, overrides or [])
        record(model, *files)  # a later run may delete them
        for name, content in reversed(files.items()):  # first what it shows
            write_whole(model / name, content)
    typer.echo(f"The model card is {model / CARD_FILE}. To go on from it yourself, remove this line of it:\n{MARK}")
    if repo_id is None:
        typer.echo("Its code calls the model as its folder; with --repo-id NAME/MODEL, as on the Hub.")
    typer.echo(f"To publish it with its model: trivium push {model} {repo_id or 'NAME/MODEL'}")


@commands.command(epilog="Example: `trivium push runs/numbers someone/numbers --private`")
def push(
    model: Model,
    repo_id: Annotated[str, typer.Argument(help="The repository, as `someone/numbers`.", show_default=False)],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who sees a new repository; by default as your settings have it."),
    ] = None,
    revision: Annotated[str, typer.Option(help="The branch; a new one starts where `main` is.")] = "main",
    message: Annotated[str | None, typer.Option(help="The first line of the commit.")] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Publish a page to try it on, too, as the Space of the same name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, but change nothing.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code in the folder that is not the installed package's.")
    ] = False,
) -> None:
    """Check a model and publish it on the Hub, in one commit.

    It is loaded as others would load it, without this package, and must compute the same. Then the model, its
    tokenizer, its code, its scores and its model card are sent; checkpoints, logs and texts stay here. What an earlier
    model left in the repository goes, everything else in it stays.

    With `--space` the page of `trivium demo` follows, for this commit of the model. It stays in the folder
    `space` beside the model, to be started here: `python app.py`.

    Log in with `hf auth login` first, or set `HF_TOKEN`.
    """
    console = Console(soft_wrap=True)
    with mistakes_explained():
        check_saved_model(model)
        from trivium import hub

        console.print(f"Loading {model} where trivium is not installed, and comparing ...")
        hub.check_folder(model, trust_remote_code=trust_remote_code)
        console.print("Others can load it: it computes the same there.")
        planned = hub.plan(model, repo_id, private=private, revision=revision)
        _show(console, planned)
        if space:  # what will not do is refused before anything is sent
            with TemporaryDirectory() as temporary:
                hub.write_space(model, Path(temporary), repo_id)
                page = hub.plan_space(Path(temporary), repo_id, private=private)
                console.print(f"The page, as a Space{' that would be new' if page.creates else ''}:")
                _show(console, page)
        if dry_run:
            created = f", in a {planned.creates} that would be new" if planned.creates else ""
            console.print(f"Nothing was sent. These files would be {repo_id}, branch {revision}{created}.")
            return
        pushed = hub.send(planned, message=message)
        auto_class = hub.auto_class_of(model)
    console.print("" if pushed.changed else "All of this was there already: there is no new commit.")
    console.print(f"The model is at {pushed.url}. To load it:\n")
    pin = "" if revision == "main" else f', revision="{revision}"'
    for variable, loader in (("tokenizer", "AutoTokenizer"), ("model", auto_class)):
        typer.echo(f'{variable} = transformers.{loader}.from_pretrained("{repo_id}", trust_remote_code=True{pin})')
    if space:
        with mistakes_explained():
            hub.write_space(model, model / "space", repo_id, str(pushed.commit))
            page = hub.send(hub.plan_space(model / "space", repo_id, private=private))
        console.print("" if page.changed else "All of the page was there already: there is no new commit.")
        console.print(f"The page to try it on is at {page.url}.")


def _show(console: Console, planned: "Push") -> None:
    table = Table("file", "size")
    for name in sorted(planned.files):
        table.add_row(name, decimal(planned.size_of(name)))
    for name in planned.deletions:
        table.add_row(f"[red]{name}", "deleted")
    console.print(table)
