"""exp.report: medians, Markdown, JSON files, and a canvas on which an optimizer has one colour."""

import json
import os

import pytest

from exp.report.canvas import canvas, color, display_name, grid_of, styles
from exp.report.forecast import forecast, total
from exp.report.jsonfile import read_json, to_json, write_json
from exp.report.statistics import Estimate, geometric_mean, median_time
from exp.report.tables import page, table

# The published runs of modular addition, 30 seeds each: steps to the target.
LAZY = [442, 548, 567, 567, 596, 596, 605, 634, 644, 653, 701, 730, 730, 864, 893, 951, 1047, 
        1085, 1220, 1460, 1536, 1892, 1997, 2084]
NORMUON = [776, 896, 960, 976, 976, 1032, 1048, 1080, 1112, 1168, 1760, 1776, 1856, 2064, 2080,
           2120, 2200, 2312, 2384, 2400]
SYNC = [784, 832, 832, 864, 864, 880, 912, 912, 944, 976, 1248, 1280, 1408, 1440, 1520, 1536,
        1536, 1552, 1600, 1616, 1616, 1696, 1888, 2032, 2080, 2144, 2368, 2384]


@pytest.mark.parametrize(("times", "median"), [(LAZY, 893), (NORMUON, 2080), (SYNC, 1520)])
def test_a_running_product_of_one_half_is_one_half(times, median):
    missed = 30 - len(times)
    assert median_time([*times, *[None] * missed], [2400] * 30).value == median
    assert sum(time <= median for time in times) == 15


def test_a_forecast_adds_up_what_was_timed():
    assert forecast({"a": 30.0, "b": None, "c": 150.0}).splitlines() == [
        "a: 30 s", "b: never timed", "c: 2.5 min",
        "3 to run: at most about 3.0 min in all, and 1 never timed"]
    assert total({"a": 7200.0}) == "1 to run: at most about 2.0 h in all"
    assert total({}) == "nothing to run"


def test_an_interval_of_rates_is_on_the_log_scale():
    # Logs 0 and ln 4: mean ln 2, half the interval t(1) ln 2 with t(1) = 12.706.
    found = geometric_mean([1.0, 4.0])
    assert (found.value, found.low) == pytest.approx((2.0, 2 / 2**12.706), rel=1e-3)


def test_a_cell_is_written_as_what_it_is():
    lines = [("", "a", "b"), ("x", 0.123456, Estimate(1.0, 0.5, float("inf"), 3)),
             ("y", [1.0, 3.0], None), ("z", 12345.6, "text")]
    assert table(lines).splitlines() == [
        "|   | a                 | b          |",
        "|---|-------------------|------------|",
        "| x | 0.1235            | 1 [0.5, ∞] |",
        "| y | 2 [-10.71, 14.71] | –          |",
        "| z | 12346             | text       |"]
    assert page("# T", "", "end") == "# T\n\nend\n"


def test_json_is_written_whole_line_by_line_and_a_damaged_file_is_one_message(tmp_path,
                                                                             monkeypatch):
    path = tmp_path / "folder" / "x.json"
    content = {"a": {"b": [1, 2]}, "c": [{"d": 1}, {"d": None}], "e": {}}
    assert read_json(path) is None
    write_json(path, content, depth=2)
    assert read_json(path) == content
    assert path.read_text() == ('{\n"a": {\n"b": [1, 2]\n},\n"c": [\n{"d": 1},\n{"d": null}\n],\n'
                                '"e": {}\n}\n')
    assert to_json(content, 0) == json.dumps(content)
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    rename = os.replace

    def overtaken(*paths):  # another process writes the file between ours and its renaming
        monkeypatch.setattr(os, "replace", rename)
        write_json(path, {"theirs": 2}, depth=0)
        rename(*paths)

    monkeypatch.setattr(os, "replace", overtaken)
    write_json(path, {"ours": 1}, depth=0)
    assert read_json(path) == {"ours": 1} and len(list(path.parent.iterdir())) == 1
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"x\.json is damaged .*: restore it or delete it"):
        read_json(path)


def test_an_optimizer_has_one_colour_and_one_name_however_it_is_spelled():
    assert {display_name(name) for name in ("ars2_neo_lazy", "ARS2-Neo Lazy")} == {"ARS2-Neo Lazy"}
    assert [display_name(name) for name in ("adamw", "sam_adamw", "ars2_neo_aga", "adamw_8bit",
                                            "kfac", "sgd", "nobodys_rule")] == [
        "AdamW", "SAM-AdamW", "ARS2-Neo AGA", "8-bit AdamW", "K-FAC", "SGD", "nobodys_rule"]
    for one, two in (("ars2_neo_lazy", "ARS2-Neo Lazy k=5"), ("muon", "Muon (decay 0.05)"),
                     ("sam_adamw", "SAM-AdamW"), ("tiger", "Tiger"), ("kfac", "K-FAC, damped")):
        assert color(one) == color(two), one
    together = ("adamw", "sgd", "lion", "muon", "muon_squared", "adamuon", "normuon", "soap",
                "rmsuon", "ada_rmsuon", "ars2_neo_base", "ars2_neo_sync", "ars2_neo_lazy",
                "ars2_neo_aga", "sam_adamw", "kfac", "tr_muon", "tiger", "lamb", "shampoo")
    assert len({color(name) for name in together}) == len(together)


def test_variants_of_an_optimizer_differ_by_dashes_not_by_colour():
    chosen = styles(["Muon (no decay)", "AdamW", "Muon (decay)"])
    assert chosen["Muon (no decay)"]["color"] == chosen["Muon (decay)"]["color"] == color("muon")
    assert chosen["Muon (no decay)"]["linestyle"] != chosen["Muon (decay)"]["linestyle"]
    assert chosen["AdamW"]["linestyle"] == chosen["Muon (no decay)"]["linestyle"]


def test_a_figure_depends_on_its_data_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for name in ("one.png", "two.png"):
        with canvas(tmp_path / name, *grid_of(2), title="runs_$x^$/seed1") as panels:
            for label, style in styles(["adamw", "muon"]).items():
                panels[0, 0].plot([1, 2], [1, len(label)], **style)
            panels[0, 0].set(xlabel="step", ylabel="loss (nats)")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert not panels[0, 1].axison  # nothing was drawn there
    assert [text.get_text() for text in panels[0, 0].figure.legends[0].texts] == ["AdamW", "Muon"]


def test_axes_are_named_and_their_numbers_are_readable(tmp_path):
    with canvas(tmp_path / "x.png") as panels:
        panels[0, 0].plot([1e-3, 1e2], [1e-6, 10])
        panels[0, 0].set(xscale="log", yscale="log", xlabel="lr, 10^$x$", ylabel="loss")
    figure = panels[0, 0].figure
    figure.draw_without_rendering()
    numbers = [text for text in (*panels[0, 0].get_xticklabels(), *panels[0, 0].get_yticklabels())
               if text.get_text()]
    assert len(numbers) > 4 and all(text.get_parse_math() for text in numbers)
    assert not panels[0, 0].xaxis.label.get_parse_math()
