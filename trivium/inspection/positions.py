"""Plot position encodings and their dot products."""

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedConfig, PreTrainedModel

from trivium.modeling.positions import RotaryPositions, rotate, sinusoidal_encoding

from .drawing import VALUES


def plot_positions(model_or_config: PreTrainedModel | PreTrainedConfig, length: int = 128) -> Figure:
    """Draw the position encoding, with positions as rows and dimensions as columns.

    Sinusoidal encodings (section 3.5) and learned embeddings are drawn as they are added to the token embeddings, with
    one plot per stack for learned embeddings. Rotary positions are drawn as the cosine and sine of the rotation angle
    of each pair of dimensions of a head.

    Args:
        model_or_config: A model, or its configuration unless its positions are learned.
        length: Number of positions, from 0.

    Returns:
        The figure.

    Raises:
        ValueError: `length` is below 1 or above the number of learned positions, or positions are learned and only a
            configuration is given.
    """
    config = _config_of(model_or_config, length)
    if config.position_embedding_type == "rotary":
        cos, sin = _rotation(config, length)
        pairs = config.head_dim // 2
        title = f"Rotary positions, base {config.rope_theta:,.0f}"
        return _draw({"cosine": cos[:, :pairs], "sine": sin[:, :pairs]}, title, "pair of dimensions")
    kind = config.position_embedding_type.capitalize()
    return _draw(_tables(model_or_config, length), f"{kind} positions", "dimension")


def plot_position_products(model_or_config: PreTrainedModel | PreTrainedConfig, length: int = 128) -> Figure:
    """Draw the dot products of all pairs of positions and, below, of the middle position with every other position.

    For rotary positions, a unit vector with equal components is rotated to both positions; the dot product of the two
    results depends only on the distance.

    Args:
        model_or_config: As in `plot_positions`.
        length: Number of positions, from 0.

    Raises:
        ValueError: As in `plot_positions`.
    """
    config = _config_of(model_or_config, length)
    if config.position_embedding_type == "rotary":
        ones = torch.full((1, 1, length, config.head_dim), config.head_dim**-0.5)
        tables = {"": rotate(ones, _rotation(config, length))[0, 0]}
    else:
        tables = _tables(model_or_config, length)
    figure = Figure(figsize=(0.6 + 4.4 * len(tables), 5.8), layout="constrained")
    grid = figure.subplots(2, len(tables), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (above, below), (name, table) in zip(grid.T, tables.items(), strict=True):
        products = (table @ table.T).numpy()
        image = above.imshow(products, cmap=VALUES, aspect="auto")
        above.set(title=name, ylabel="position")
        figure.colorbar(image, ax=above, label="dot product").outline.set_visible(False)
        middle = length // 2
        below.plot(products[middle], color="black")
        below.axvline(middle, color="0.6", linestyle=":")
        below.set(xlabel="position", ylabel=f"with {middle}")
        below.spines[["top", "right"]].set_visible(False)
    title = f"{config.position_embedding_type.capitalize()} positions: dot products"
    figure.suptitle(title, fontsize="medium")
    return figure


def _config_of(model_or_config: PreTrainedModel | PreTrainedConfig, length: int) -> PreTrainedConfig:
    config = getattr(model_or_config, "config", model_or_config)
    longest = config.max_position_embeddings
    if length < 1:
        raise ValueError(f"length is {length}, but must be at least 1.")
    if config.position_embedding_type == "learned":
        if model_or_config is config:
            raise ValueError(
                "position_embedding_type is 'learned', so a trained model is needed: its configuration has no weights."
            )
        if length > longest:
            raise ValueError(f"length is {length}, but learned positions end at max_position_embeddings={longest}.")
    return config


def _tables(model_or_config: PreTrainedModel | PreTrainedConfig, length: int) -> dict[str, torch.Tensor]:
    """Return the encodings that are added to embeddings, (length, d_model); one per stack if learned."""
    config = getattr(model_or_config, "config", model_or_config)
    if config.position_embedding_type == "sinusoidal":
        return {"": sinusoidal_encoding(torch.arange(length), config.d_model)}
    base = model_or_config.base_model
    stacks = {name: getattr(base, name) for name in ("encoder", "decoder") if hasattr(base, name)}
    return {
        name: stack.embed_positions.embedding.weight[:length].detach().float().cpu() for name, stack in stacks.items()
    }


def _rotation(config: PreTrainedConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine, each (length, head_dim); the second half of the dimensions repeats the first."""
    cos, sin = RotaryPositions(config)(torch.zeros(1), torch.arange(length)[None])[1]
    return cos[0, 0], sin[0, 0]


def _draw(tables: dict[str, torch.Tensor], title: str, dimension: str) -> Figure:
    vmin, vmax = (min(table.min().item() for table in tables.values()), max(t.max().item() for t in tables.values()))
    figure = Figure(figsize=(1 + 4.5 * len(tables), 4.5), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        image = axes.imshow(table.numpy(), cmap=VALUES, aspect="auto", vmin=vmin, vmax=vmax)
        axes.set(title=name, xlabel=dimension, ylabel="position")
    figure.colorbar(image, ax=axes, label="value").outline.set_visible(False)
    figure.suptitle(title, fontsize="medium")
    return figure
