"""Test plots of positions, runs and embeddings, the saved files, and `trivium plot`."""

import inspect
import json
import math
import re
import runpy
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from figures import heatmap_of
from matplotlib import font_manager, get_data_path, rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from paths import ROOT
from tiny import shake, tiny_config, tiny_model
from typer.testing import CliRunner

from trivium import (
    TriviumForConditionalGeneration,
    TriviumForTokenClassification,
    TriviumTokenizer,
    inspection,
    preset_config,
)
from trivium.inspection import (
    MissingFontWarning,
    fonts,
    plot_alignment,
    plot_attention,
    plot_heads,
    plot_learning_curves,
    plot_logit_lens,
    plot_masks,
    plot_neighbors,
    plot_position_products,
    plot_positions,
    save_figure,
)
from trivium.tokenization import train_tokenizer
from trivium_cli import app

TEXTS = ["two dogs ran across the road", "zwei Hunde liefen über die Straße", "one two three", "eins zwei drei"]


# --- Positions -------------------------------------------------------------------------------------------------------


def test_sinusoids_match_the_paper() -> None:
    expected = torch.zeros(50, 24)
    for position in range(50):
        for i in range(12):
            angle = position / 10000 ** (2 * i / 24)
            expected[position, 2 * i], expected[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    torch.testing.assert_close(heatmap_of(plot_positions(tiny_config(), 50)), expected)
    products = plot_position_products(tiny_config(), 50)
    torch.testing.assert_close(heatmap_of(products), expected @ expected.T)
    curve = products.axes[1].lines[0].get_ydata()
    torch.testing.assert_close(torch.tensor(curve), (expected @ expected.T)[25])


def test_rotary_angles_have_one_frequency_per_pair() -> None:
    # Each head has 4 pairs of dimensions, each with its own frequency.
    config = tiny_config(position_embedding_type="rotary", d_model=32, rope_theta=500.0)
    angles = torch.tensor([[position / 500 ** (2 * i / 8) for i in range(4)] for position in range(30)])
    figure = plot_positions(config, 30)
    torch.testing.assert_close(heatmap_of(figure, 0), angles.cos())
    torch.testing.assert_close(heatmap_of(figure, 1), angles.sin())
    assert [axes.get_title() for axes in figure.axes[:2]] == ["cosine", "sine"]
    between = (angles[:, None] - angles[None]).cos().mean(dim=-1)  # products of rotated unit vectors
    torch.testing.assert_close(heatmap_of(plot_position_products(config, 30)), between)


def test_learned_positions_match_model() -> None:
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=9).float()
    figure, products = plot_positions(model, 7), plot_position_products(model, 7)
    stacks = (model.model.encoder, model.model.decoder)
    for place, stack in enumerate(stacks):
        expected = stack.embed_positions.embedding.weight[:7].detach()
        torch.testing.assert_close(heatmap_of(figure, place), expected)
        torch.testing.assert_close(heatmap_of(products, place), expected @ expected.T)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["encoder", "decoder"]
    with pytest.raises(ValueError, match=r"length.*10.*learned positions end.*max_position_embeddings=9"):
        plot_positions(model, 10)
    with pytest.raises(ValueError, match=r"trained model.*configuration"):
        plot_positions(model.config)
    with pytest.raises(ValueError, match=r"length.*0"):
        plot_position_products(tiny_config(), 0)


# --- Learning curves -------------------------------------------------------------------------------------------------


def write_run(folder: Path, factor: float = 1.0) -> Path:
    history: list[dict[str, float]] = [{"step": 0, "tokens_per_batch": 9.0}]
    for step in range(1, 5):
        history.append({"step": step, "loss": factor * 4 / step, "learning_rate": 0.1 / step, "grad_norm": 1.0})
        if step % 2 == 0:
            history.append(
                {"step": step, "eval_loss": factor * 5 / step, "eval_sacrebleu": 10.0 * step, "eval_runtime": 3.0}
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 4}))
    return folder


def test_curves_match_the_log(tmp_path: Path) -> None:
    finished = write_run(tmp_path / "finished")
    write_run(tmp_path / "running" / "checkpoint-2", factor=9.0)
    write_run(tmp_path / "running" / "checkpoint-10", factor=2.0)
    figure = plot_learning_curves(finished, tmp_path / "running")
    panels = {axes.get_title(): [np.array(line.get_data()).T.tolist() for line in axes.lines] for axes in figure.axes}
    rate = [[step, 0.1 / step] for step in range(1, 5)]
    bleu = [[2, 20], [4, 40]]
    assert panels == {
        "loss": [
            *([[1, 4], [2, 2], [3, 4 / 3], [4, 1]], [[2, 2.5], [4, 1.25]]),
            *([[1, 8], [2, 4], [3, 8 / 3], [4, 2]], [[2, 5], [4, 2.5]]),
        ],
        "sacrebleu": [bleu, bleu],
        "learning rate": [rate, rate],
    }
    first, _, second, _ = figure.axes[0].lines
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle(), "or grey print would not tell them apart"


def test_runs_without_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runs.*empty"):
        plot_learning_curves()
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
        plot_learning_curves(tmp_path)
    state = tmp_path / "trainer_state.json"
    for content, message in (("[]", "is not a valid state of a Trainer"), ('{"log_history": []}', "has no loss")):
        state.write_text(content)
        with pytest.raises(ValueError, match=message):
            plot_learning_curves(tmp_path)


# --- Neighbors -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=330)


def translator(tokenizer: TriviumTokenizer, **options: Any) -> TriviumForConditionalGeneration:
    return shake(TriviumForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), **options)), std=0.5).eval()


def test_neighbors_are_nearest_by_cosine(tokenizer: TriviumTokenizer) -> None:
    model = translator(tokenizer)
    figure = plot_neighbors(model, tokenizer, ["two", "Straße"], count=5)
    table = model.model.encoder.embed_tokens.weight.detach()
    for axes, word in zip(figure.axes, ["two", "Straße"], strict=False):
        own = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        cosines = {}
        for token, vector in enumerate(table):
            text = tokenizer.decode([token])
            if token not in {*own, *tokenizer.all_special_ids} and text.isprintable() and "\ufffd" not in text:
                mean = table[own].mean(dim=0)
                cosines[token] = float(mean @ vector / (mean.norm() * vector.norm()))
        best = sorted(cosines, key=lambda token: -cosines[token])[:5]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([cosines[token] for token in best], abs=1e-5)
        labels = [each.get_text().replace("␣", " ") for each in axes.get_yticklabels()]
        assert labels == [tokenizer.decode([token]) for token in best]
        assert axes.get_title() == word


def test_each_side_has_its_own_embeddings() -> None:
    tokenizer = train_tokenizer(TEXTS[::2], target_texts=TEXTS[1::2], vocab_size=300, shared=False)
    model = translator(tokenizer.source, decoder_vocab_size=tokenizer.target_vocab_size)
    figure = plot_neighbors(model, tokenizer, ["zwei"], count=3, side="target")
    own = tokenizer.target(" zwei", add_special_tokens=False)["input_ids"]
    table = model.model.decoder.embed_tokens.weight.detach()
    cosines = torch.nn.functional.cosine_similarity(table, table[own].mean(dim=0, keepdim=True))
    texts = [tokenizer.target.decode([token]) for token in range(len(table))]
    for token, text in enumerate(texts):
        if token in {*own, *tokenizer.all_special_ids} or "\ufffd" in text or not text.isprintable():
            cosines[token] = -1
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx(cosines.topk(3).values.tolist())


def test_labels_on_map_do_not_overlap(tokenizer: TriviumTokenizer) -> None:
    figure = plot_neighbors(translator(tokenizer), tokenizer, ["two", "zwei", "road"], count=6)
    names = figure.axes[3].texts
    assert len(names) >= 18
    boxes = [name.get_window_extent() for name in names]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_unknown_words_are_refused(tokenizer: TriviumTokenizer) -> None:
    model = translator(tokenizer)
    for words, options, message in (
        ([], {}, "words is \\[\\], but must be a list"),
        ("two", {}, "words is 'two', but must be a list"),
        ([" "], {}, "words has ' ', which has no tokens"),
        (["two"], {"side": "both"}, "side is 'both'"),
        (["two"], {"count": 0}, "count is 0, but must be from 1 to"),
        (["two"], {"count": 999}, "count is 999, but must be from 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_neighbors(model, tokenizer, words, **options)


def test_former_spelling_of_plot_neighbors_warns() -> None:
    with pytest.warns(FutureWarning, match="use plot_neighbors instead"):
        assert inspection.plot_neighbours is plot_neighbors
    assert trivium("neighbours", "--help")[0] == 0


# --- Fonts -----------------------------------------------------------------------------------------------------------


def test_font_fallback_for_missing_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled font cmr10 lacks accented letters, so plots must fall back to another bundled font."""
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [])
    with rc_context({"font.family": ["cmr10"]}):
        assert fonts.families_for("abc") == ([], set())
        families, missing = fonts.families_for("aß→é\u200d\ufe0f\n ")
        assert not missing
        with fonts.legible(["ß→é"]):
            text = Figure().text(0, 0, "$ß→é$")
    assert text.get_fontfamily() == ["cmr10", *families]
    assert not text.get_parse_math()
    lacks, has = (font_manager.get_font(font_manager.findfont(name)) for name in ("cmr10", families[0]))
    assert not lacks.get_char_index(ord("ß"))
    assert has.get_char_index(ord("ß"))


def test_newly_installed_fonts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate newly installed fonts, which are missing from matplotlib's cached list."""
    manager = font_manager.fontManager
    cached_fonts = [font for font in manager.ttflist if font.name != "DejaVu Sans"]
    monkeypatch.setattr(manager, "ttflist", cached_fonts)
    new = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [new, __file__])  # The second file is not a font.
    manager._findfont_cached.cache_clear()
    with rc_context({"font.family": ["cmr10"]}):
        families, missing = fonts.families_for("☺⠿ℵ")  # covered by hardly any other font
    assert (families, missing) == (["DejaVu Sans"], set())


@pytest.mark.parametrize(
    ("text", "package"), [("漢字かな한", "fonts-noto-cjk"), ("🙂", "fonts-symbola"), ("हिन्दी", "fonts-noto-core")]
)
def test_missing_font_names_the_package_to_install(
    text: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", only)
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [])
    with pytest.warns(MissingFontWarning, match=f"has .*{re.escape(text[0])}.*apt-get install {package}\\)"):
        figure = plot_learning_curves(write_run(tmp_path / text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # The hint is logged only once.
        save_figure(figure, tmp_path / "curves.png")


def test_chinese_characters_follow_the_language() -> None:
    assert [fonts._han_style(text) for text in ("漢字", "漢字かな", "漢字한국")] == ["SC", "JP", "KR"]


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml"), pytest.param("c.pdf", b"%PDF", marks=pytest.mark.slow)],
    ids=["png", "svg", "pdf"],
)
def test_file_format_follows_name_and_is_reproducible(name: str, start: bytes, tmp_path: Path) -> None:
    contents = set()
    for _ in range(2):
        save_figure(plot_positions(tiny_config(), 8), tmp_path / name)
        contents.add((tmp_path / name).read_bytes())
    [content] = contents
    assert content.startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("png"):
        height, width, _ = imread(tmp_path / name).shape
        assert 300 < height < 2000
        assert 300 < width < 2000
    elif name.endswith("SVG"):
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"


def test_file_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.png").write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space")

    figure = Figure()
    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        save_figure(figure, tmp_path / "old.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old.png": b"old"}
    with pytest.raises(ValueError, match=r"end.*one.*\.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "picture.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_figure(figure, tmp_path / "nowhere" / "picture.png")


def test_huge_figure_has_lower_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.inspection.drawing.MAX_PIXELS", 1e4)
    save_figure(Figure(figsize=(4, 1)), tmp_path / "picture.png")
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert height * width < 2e4, "of 9e4"


# --- trivium plot ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tokenizer: TriviumTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = translator(tokenizer)
    model.generation_config.max_length = 8
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return write_run(path)


def trivium(*arguments: str | Path) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error, without colors."""
    result = CliRunner().invoke(app, ["plot", *map(str, arguments)], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, re.sub(r"\x1b\[[\d;]*m", "", result.stderr)


COMMANDS = {
    "attention": ["FOLDER", "two dogs", "--kind", "decoder", "--layer", "2", "--head", "4", "--target", "zwei Hunde"],
    "heads": ["FOLDER", "two dogs", "--target", "zwei Hunde"],
    "alignment": ["FOLDER", "two dogs", "--layer", "1"],
    "positions": ["FOLDER", "--length", "20"],
    "masks": ["gpt2", "--length", "3", "--length", "2", "--left"],
    "curves": ["FOLDER", "FOLDER"],
    "neighbors": ["FOLDER", "two", "road", "--count", "3", "--side", "target"],
    "lens": ["FOLDER", "two dogs", "--target", "zwei Hunde"],
}


def expected(command: str, folder: Path) -> Figure:
    tokenizer = TriviumTokenizer.from_pretrained(folder)
    model = TriviumForConditionalGeneration.from_pretrained(folder).eval()
    pair = (model, tokenizer, "two dogs", "zwei Hunde")
    figures: dict[str, Any] = {
        "attention": lambda: plot_attention(*pair, kind="decoder", layer=1, head=3),
        "heads": lambda: plot_heads(*pair),
        "alignment": lambda: plot_alignment(*pair[:3], layer=0),
        "positions": lambda: plot_positions(model, 20),
        "masks": lambda: plot_masks(preset_config("gpt2"), (3, 2), padding_side="left"),
        "curves": lambda: plot_learning_curves(folder, folder),
        "neighbors": lambda: plot_neighbors(model, tokenizer, ["two", "road"], count=3, side="target"),
        "lens": lambda: plot_logit_lens(*pair),
    }
    return figures[command]()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_match_plot_functions(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.inspection.drawing.DOTS_PER_INCH", 30)  # draws in less time
    picture = tmp_path / "picture.png"
    arguments = [str(folder) if each == "FOLDER" else each for each in COMMANDS[command]]
    code, output, errors = trivium(command, *arguments, "--output", picture)
    assert (code, output) == (0, f"The picture is {picture}.\n"), errors
    save_figure(expected(command, folder), tmp_path / "expected.png")
    assert picture.read_bytes() == (tmp_path / "expected.png").read_bytes()
    code, output, _ = trivium(command, "--help")
    assert code == 0
    assert f"Example: trivium plot {command}" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "FOLDER", "two", "-o", "x.jpg"], "x.jpg, but must end with one of .png, .svg, .pdf."),
        (["attention", "FOLDER", "two", "-o", "nowhere/x.png"], "there is no folder nowhere"),
        (["attention", "nowhere", "two", "-o", "x.png"], "nowhere is not a saved model"),
        (["attention", "FOLDER", "two", "-o", "x.png", "--layer", "4"], "--layer is 4, but must be from 1 to 3."),
        (["attention", "FOLDER", "two", "-o", "x.png", "--head", "5"], "--head is 5, but must be from 1 to 4."),
        (["heads", "FOLDER", "two", "-o", "x.png", "--kind", "encoder", "-t", "x"], "the encoder does not use it"),
        (["positions", "nowhere", "-o", "x.png"], "The preset 'nowhere' does not exist"),
        (["positions", "gpt2", "-o", "x.png"], "a trained model is needed: its configuration has no weights."),
        (["curves", ".", "-o", "x.png"], ". has no trainer_state.json"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = trivium(*[str(folder) if each == "FOLDER" else each for each in arguments])
    assert (code, output) == (1, "")
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_all_trivium_classes_are_plotted_and_no_others(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    model = TriviumForTokenClassification(tiny_config(vocab_size=len(tokenizer), decoder_layers=0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert trivium("heads", tmp_path, "two dogs", "-o", tmp_path / "heads.png")[0] == 0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    code, _, errors = trivium("heads", tmp_path, "two dogs", "-o", tmp_path / "heads.png")
    assert (code, "holds a BertModel, but must hold a Trivium model" in errors) == (1, True)


def test_missing_font_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "families_for", lambda characters: ([], {"漢"}))
    code, _, errors = trivium("attention", folder, "漢", "-t", "x", "-o", tmp_path / "x.png")
    assert code == 0
    assert errors.splitlines()[-1].startswith("Warning: No installed font has 漢, ")


def test_gallery_shows_output_of_its_commands() -> None:
    text = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    commands = runpy.run_path(str(ROOT / "docs" / "make_gallery.py"))["commands_of"](text)
    made = [arguments[-1] for arguments in commands]
    assert made == re.findall(r"!\[[^]]+\]\(pictures/(.+)\)", text)
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} >= set(made)
    assert {arguments[1] for arguments in commands} == set(COMMANDS), "there is one of every kind"
    for line in re.findall(r"`(plot_\w+)\((.*?)\)`", text):  # Rows keep the order of the table.
        parameters = str(inspect.signature(getattr(inspection, line[0])))
        names = [each.split("=")[0].strip("* ") for each in re.sub(r"\(.*?\)", "", line[1]).split(",")]
        assert [name for name in names if name] == re.findall(r"(\w+):", parameters), line
