"""Figures: what they draw, in the colours of a light and a dark page, and as files for papers."""

import re
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fer_jax import figures
from fer_jax.__main__ import main
from fer_jax.figures import Band, Line


def a_chart(title: str = "a title", **options: Any) -> Any:
    lines = [Line("<b> & $x$", [0, 0.5, 0.7, 1], [0, float("nan"), 1, 0.5], "c1")]
    return figures.chart(lines, title, "x label", "y label", **options)


def path_of(svg: str, name: str) -> str:
    return re.findall(rf'<g><title>{name}</title>\s*<path d="([^"]*)"', svg)[0]


def test_a_line_is_drawn_to_scale_and_interrupted_where_it_is_undefined():
    lines = [
        Line("up", [0, 0.5, 1], [0, 0.5, 1], "c0"),
        Line("gap", [0, 0.5, 1], [1, np.nan, 1], "c1"),
    ]
    svg = figures.svg(figures.chart(lines, "a title", "x", "y"))
    (x0, y0), (x1, y1), (x2, y2) = np.asarray(
        re.findall(r"([\d.]+) ([\d.]+)", path_of(svg, "up")), float
    )
    assert x0 < x1 < x2 and y0 > y1 > y2  # downwards in SVG
    assert (x1, y1) == (
        pytest.approx((x0 + x2) / 2, abs=0.02),
        pytest.approx((y0 + y2) / 2, abs=0.02),
    )
    assert path_of(svg, "gap").count("M") == 2 and "nan" not in svg.lower()


def test_an_svg_has_a_title_text_and_colours_of_the_page():
    svg = figures.svg(a_chart('a "chart"', diagonal="chance level", vertical=("best", 0.5)))
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'a "chart"'
    text = " ".join("".join(root.itertext()).split())
    # Nothing is read as markup or mathematics.
    for said in ("x label", "y label", "<b> & $x$", "chance level", "best"):
        assert said in text
    assert "var(--c1)" in svg and "var(--soft)" in svg and "var(--cross)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert not re.search(r"https?:|<style|@import", svg)


def test_the_same_figure_is_the_same_svg_and_two_share_no_identifier():
    first, again = figures.svg(a_chart(bars=("n", [1]))), figures.svg(a_chart(bars=("n", [1])))
    assert first == again
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, figures.svg(a_chart("b")))]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"#(\w+)", first)) <= ids[0]


def test_both_modes_have_every_colour_and_text_can_be_read_in_both():
    assert figures.LIGHT.keys() == figures.DARK.keys()
    assert len(set(figures.LIGHT.values())) == len(figures.LIGHT)

    def luminance(colour: str) -> float:
        channels = np.asarray([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for mode in (figures.LIGHT, figures.DARK):
        paper = luminance(mode["paper"])
        for name in ("ink", "soft"):
            high, low = sorted([paper, luminance(mode[name])], reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, 1.4.3
    css = figures.css()
    assert f"--ink:{figures.LIGHT['ink']}" in css.split("@media screen and (prefers-color")[0]
    assert f"--ink:{figures.DARK['ink']}" in css.split("(prefers-color-scheme:dark)")[1]


def test_a_heatmap_shows_its_numbers_and_shades():
    shades = np.asarray([[0.25, np.nan], [1.0, 0.0]])
    figure = figures.heatmap(
        shades, [["1", "n/a"], ["4\n[3, 5]", "0"]], "t", ["a_b", "c"], ["d", "e"]
    )
    svg = figures.svg(figure)
    text = ElementTree.fromstring(svg).itertext()
    assert {"1", "n/a", "4", "[3, 5]", "0", "a b", "c", "d", "e"} <= {said.strip() for said in text}
    cells = re.findall(r'style="fill: var\(--heat\);?([^"]*)"', svg)
    opacities = [re.findall(r"[; ]opacity: ([\d.]+)", f" {cell}") for cell in cells]
    assert opacities == [["0.25"], []]  # nothing is drawn for 0


def test_differences_show_each_interval_that_exists():
    figure = figures.differences(
        ["one", "two"], [0.1, -0.2], [(0.05, 0.15), None], "t", "difference"
    )
    drawn = [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].get_lines()]
    assert [[0.05, 0], [0.15, 0]] in drawn and [[0.1, 0]] in drawn and [[-0.2, 1]] in drawn
    assert sum(len(points) == 2 for points in drawn) == 2  # the zero line and one interval
    assert "two" in figures.svg(figure)


def test_a_timeline_stacks_shares_and_leaves_gaps_open():
    shares = np.full((10, 2), 0.5)
    shares[4:6] = np.nan
    figure = figures.timeline(
        [Band("face 1", "8 frames", shares)], {"a": "red", "b": "#00f"}, 2, 12, "t", "c"
    )
    outlines: list[Any] = [patch.get_path().vertices for patch in figure.axes[0].patches]
    spans = [(xy[:, 0].min(), xy[:, 0].max(), xy[:, 1].min(), xy[:, 1].max()) for xy in outlines]
    assert spans == [(2, 6, 0, 0.5), (2, 6, 0.5, 1), (8, 12, 0, 0.5), (8, 12, 0.5, 1)]
    svg = figures.svg(figure, standalone=True)
    # A file of its own brings its variables along, and the classes keep their colours.
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg and "prefers-color-scheme:dark" in svg
    assert "#ff0000" in svg and "#0000ff" in svg


def pdf_objects(data: bytes) -> bytes:
    """The file with its compressed streams unpacked."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
    return data + b"".join(zlib.decompress(one) for one in streams if one[:1] == b"x")


def test_files_for_papers_embed_fonts_and_do_not_change(tmp_path: Path):
    for name in ("a.pdf", "b.pdf", "a.svg", "b.svg", "a.png"):
        figures.save(a_chart(), tmp_path / name)
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-1.") and pdf.rstrip().endswith(b"%%EOF")
    assert pdf == (tmp_path / "b.pdf").read_bytes()
    unpacked = pdf_objects(pdf)
    # TrueType (type 42), as journals ask for, not type 3.
    assert b"/FontFile2" in unpacked and b"/Subtype /CIDFontType2" in unpacked
    assert b"/Type3" not in unpacked and b"a title" in unpacked
    (box,) = set(re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ", unpacked))
    assert float(box) == pytest.approx(72 * figures.COLUMN_INCHES, abs=1)
    svg = (tmp_path / "a.svg").read_text()
    assert figures.LIGHT["c1"] in svg and "var(--" not in svg
    assert svg == (tmp_path / "b.svg").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_threads_draw_the_same_and_settings_of_others_stay():
    import matplotlib

    expected = [figures.svg(a_chart(f"figure {i}")) for i in range(4)]
    before = dict(matplotlib.rcParams)
    found: dict[int, str] = {}

    def draw(i: int) -> None:
        found[i] = figures.svg(a_chart(f"figure {i}"))

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == expected
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_only_for_a_figure():
    loaded = "import sys, fer_jax.report.report, fer_jax.predict.timeline"
    code = f"{loaded}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_format_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["report", f"--workdir={tmp_path}", "--figures=gif"]) == 2
    assert "gif" in capsys.readouterr().err
