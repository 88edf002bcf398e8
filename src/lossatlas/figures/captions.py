"""A caption below a finished figure: what it shows, of what, and how."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lossatlas.figures.style import INCH, LETTER, SMALL, styled

_LINE, _MARGIN = 1.25 * SMALL / INCH, 0.05  # inches: the height of a line, and the room about the text


@styled
def captioned(figure: Figure, text: str, *, gid: str = "caption") -> Figure:
    """The same figure, grown at its lower edge by as much as a caption takes; it is laid out for the last time.

    Panels, legends, labels and captions that are there keep their sizes and their distances. Returns the figure.
    """
    figure.draw_without_rendering()  # lays it out
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    columns = int((width - 2 * _MARGIN) * INCH / (LETTER * SMALL))
    lines = textwrap.wrap(text, max(20, columns))
    strip = _LINE * len(lines) + 2 * _MARGIN
    share = height / (height + strip)  # of the new height is the old one

    def lifted(y: float) -> float:
        return float(1 - share * (1 - y))

    inverted = figure.transFigure.inverted()
    anchors = [legend.get_bbox_to_anchor().transformed(inverted) for legend in figure.legends]
    figure.set_figheight(height + strip)
    for axes in figure.axes:
        for which in ("original", "active"):
            box = axes.get_position(original=which == "original")
            axes.set_position(Bbox.from_extents(box.x0, lifted(box.y0), box.x1, lifted(box.y1)), which=which)
    for legend, box in zip(figure.legends, anchors, strict=True):
        anchor = Bbox.from_extents(box.x0, lifted(box.y0), box.x1, lifted(box.y1))
        legend.set_bbox_to_anchor(anchor, transform=figure.transFigure)
    for label in figure.texts:
        x, y = label.get_position()
        label.set_position((x, lifted(y)))
    for label in (figure._suptitle, figure._supxlabel, figure._supylabel):  # type: ignore[attr-defined]
        if label is not None and label not in figure.texts:
            x, y = label.get_position()
            label.set_position((x, lifted(y)))
    figure.text(
        _MARGIN / width,
        _MARGIN / (height + strip),
        "\n".join(lines),
        ha="left",
        va="bottom",
        size=SMALL,
        linespacing=1.15,
        gid=gid,
    )
    return figure


def explained(figure: Figure, *sentences: str) -> Figure:
    """The same figure with what its marks mean below it, the empty sentences left out."""
    text = " ".join(filter(None, sentences))
    return captioned(figure, text, gid="key") if text else figure
