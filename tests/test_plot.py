"""Style and colours of the figures."""

import pytest
from misuse import says

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from awmkit import plot  # noqa: E402


def test_a_known_method_has_a_fixed_colour_and_other_names_get_unused_colours():
    found = plot.colours(["mine", "Markov", "other", "AWM", "AWM transformer"])
    assert list(found) == ["mine", "Markov", "other", "AWM", "AWM transformer"]
    assert found["Markov"] == plot.COLOURS["Markov"] and found["AWM"] == plot.COLOURS["AWM"]
    assert found["mine"] == plot.COLOURS["simulator"] and len(set(found.values())) == 5
    assert plot.colours(["mine", "simulator"])["simulator"] == plot.COLOURS["simulator"]


def test_more_names_than_colours_are_allowed():
    assert len(plot.colours(map(str, range(50)))) == 50


def test_the_style_applies_only_inside_its_context():
    before = matplotlib.rcParams["axes.spines.top"]
    with plot.style():
        assert not matplotlib.rcParams["axes.spines.top"]
    assert matplotlib.rcParams["axes.spines.top"] == before


def test_a_result_of_another_type_raises_a_clear_error():
    says(lambda: plot.growth({"simulator": "x"}), "draws a GradientGrowth.*got a str")
