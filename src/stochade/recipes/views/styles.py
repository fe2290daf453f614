"""Lines that are told apart without colour too, for views whose numbers are no accuracies."""

_MARKS = ("circle", "square", "triangle-up", "diamond", "x", "cross", "star", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_COLOURS = ("single", "vote", "all", "published")


def curve(index: int, name: str, x: list, y: list, mode: str = "lines+markers") -> dict:
    """A plotly trace in the style of the index-th line of a plot."""
    return {
        "type": "scatter", "mode": mode, "name": name, "x": x, "y": y,
        "marker": {"symbol": _MARKS[index % len(_MARKS)], "size": 7},
        "line": {"dash": _DASHES[index // len(_COLOURS) % len(_DASHES)], "width": 2},
        "meta": {"colour": _COLOURS[index % len(_COLOURS)]},
    }  # fmt: skip
