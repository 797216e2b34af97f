"""Options of the commands that generate text: beam search and sampling."""

from typing import Annotated, Any

import typer

from trivium_cli.common import finite

Beams = Annotated[int | None, typer.Option("--beams", "-b", min=1, help="Number of beams; 1 is greedy search.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        help="Exponent of the length normalization of beam scores; above 0 favors longer texts.",
        callback=finite,
    ),
]
Sample = Annotated[bool, typer.Option("--sample", help="Sample instead of searching for the most probable text.")]
Temperature = Annotated[
    float | None,
    typer.Option(min=0.01, help="With --sample: softmax temperature; above 1 increases diversity.", callback=finite),
]
TopK = Annotated[int | None, typer.Option(min=1, help="With --sample: only from the k most probable tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="With --sample: nucleus sampling, only from the most probable tokens with this total probability.",
        callback=finite,
    ),
]
Seed = Annotated[int, typer.Option(help="With --sample: random seed.")]


def search_options(
    *,
    beams: int | None = None,
    length_penalty: float | None = None,
    sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **limits: int | None,
) -> dict[str, Any]:
    """Return the arguments of `generate()` without unset ones, so that the settings saved with the model apply.

    Raises:
        BadParameter: An option of sampling is set without --sample.
    """
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if not sample and any(value is not None for value in options.values()):
        raise typer.BadParameter("--temperature, --top-k and --top-p require --sample.")
    options |= {"num_beams": beams, "length_penalty": length_penalty, "do_sample": sample or None, **limits}
    return {name: value for name, value in options.items() if value is not None}
