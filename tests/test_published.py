"""The published leaderboard: scores and pages by hand, and the committed ones from their JSON."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from exp.report import web
from exp.report.statistics import Estimate
from exp.site import optimizers
from exp.site.__main__ import read_boards, site
from exp.tune import published
from exp.tune.published import leaderboard, page
from exp.tune.published import scores as score
from optimizer import optimizer_class

PAPER = Path("outputs/paper")
BOARD = json.loads((PAPER / "leaderboard.json").read_text(encoding="utf-8"))


def record(*values, defaults=None):
    def trial(value):
        return {"settings": {"lr": 0.1}, "value": value, "gradient_evaluations": value,
                "epoch": value and value / 8, "limit": 250}

    return {"terms": "", "text": "", "pace": {"ms": 1}, "trials": list(map(trial, values)),
            "defaults": None if defaults is None else trial(defaults)}


def test_scores_by_hand():
    records = [record(100, 80, None, 170), record(60, None), record(None, None)]
    assert score.tuned_score(records) == 80  # 80, 60, infinite
    assert score.tuned_score(records[2:]) == math.inf
    # Near the best: 100 and 80 (not 170 > 160) of 4, 60 of 2, none of 2.
    assert score.share_near_best(records) == 3 / 8
    assert score.representative(records) == 2  # of 60 and 80 the lower middle is 60
    assert score.representative(records[2:]) is None
    with_defaults = [record(100, defaults=300), record(50, defaults=None)]
    assert score.default_over_best(with_defaults) == (3.0, False)
    missed = record(50)
    missed["defaults"] = {"value": None, "limit": 100}  # given up at twice the best
    assert score.default_over_best([missed]) == (2.0, True)
    assert score.default_over_best([missed, record(100, defaults=300)]) == (2.0, True)
    assert leaderboard.bounded((2.0, True)) == "> 2" and leaderboard.bounded((2.0, False)) == "2"
    found = record(None, defaults=80)  # by the defaults alone
    assert score.default_over_best([found, missed, found]) == (0.0, False)
    assert score.default_over_best([found, missed, missed]) == (2.0, True)
    assert leaderboard.bounded((0.0, False)) == "< 1"
    assert math.isnan(score.default_over_best([record(None)])[0])


def test_a_winner_at_the_end_of_a_range_is_named():
    space = {"lr": [1e-4, 1e-2, "log"], "rho": [0.0, 1.0, "linear"]}
    trials = [{"settings": {"lr": lr, "rho": rho}, "value": value}
              for lr, rho, value in ((2e-3, 0.01, 90), (7e-3, 0.5, 80), (1e-4, 0.0, None))]
    study_ = {"space": space, "trials": trials}
    assert score.at_edges(study_) == {"lr": 7e-3}  # 0.92 of the way
    assert score.at_edges({**study_, "trials": trials[:1]}) == {"rho": 0.01}
    assert score.at_edges({**study_, "trials": trials[2:]}) == {}
    studies = [study_, {**record(3), "space": {}}]
    line = leaderboard.ranges_line({"arms": {"a": {"studies": studies}}})
    assert line.endswith("beyond: a (lr 0.007 of 0.0001 to 0.01).")
    assert leaderboard.ranges_line({"arms": {}}).endswith("none.")


def test_a_study_without_a_winner_counts_as_misses_of_every_fresh_seed():
    def runs(study, *values):
        return [{"study": study, "reached": value is not None, "epochs": 1 if value is None else
                 value / 8, "curve": {"gradient_evaluations": [8, value or 400], "seconds": [1, 2]}}
                for value in values]

    def arm(studies, fresh):
        return {"studies": studies, "fresh": fresh, "config": ""}

    task = {"terms": {"cap": 400, "fresh_seeds": 2}, "arms": {
        "adamw": arm([record(200), record(None)], runs(1, 160, 240)),
        "lucky": arm([record(80), record(None), record(None)], runs(1, 80, 88)),
        "sure": arm([record(120), record(120)], runs(1, 120, 128) + runs(2, 96, None)),
        "once": arm([record(40), record(40)], runs(1, None, None) + runs(2, None, 48)),
        "never": arm([record(None), record(None)], []),
        "waiting": arm([record(40), record(None)], [])}}
    assert score.fresh_costs(task, "adamw") == ([160, 240, None, None], [160, 240, 240, 240])
    assert score.fresh_costs(task, "adamw", "epochs")[0] == [20, 30, None, None]
    assert score.fresh_costs(task, "sure") == ([120, 128, 96, None], [120, 128, 96, 400])
    assert score.fresh_costs(task, "never") == ([None] * 4, [400] * 4)
    assert score.fresh_costs(task, "waiting") == ([], [])
    profiles = leaderboard.profiles({"a": task, "b": {**task, "arms": {
        name: arm for name, arm in task["arms"].items() if name != "sure"}}})
    assert "| sure" not in profiles  # it was tuned on one of the tasks
    assert [line.split("|")[2:-1] for line in profiles.splitlines() if "adamw" in line] == [
        [" 1.00 "] * 2]  # 1 and 1.5: no run was watched for twice the cheapest, 240 of 400
    rows = leaderboard.rows_of(task)
    # One lucky study of three does not make an arm the first; what was not run yet is last.
    assert [row["arm"] for row in rows] == ["sure", "adamw", "lucky", "once", "never", "waiting"]
    assert [row["reached"] for row in rows] == [
        "3 of 4", "2 of 4", "2 of 6", "1 of 4", "0 of 4", "0 of 0"]
    assert [row["fresh"] and row["fresh"].value for row in rows] == [
        120, 240, math.inf, math.inf, math.inf, None]
    assert rows[0]["ratio"].value == 2.0
    assert leaderboard.evaluations(rows[4]) == "no trial"
    assert leaderboard.evaluations(rows[0]).startswith("120 ")


def test_a_fresh_run_that_diverges_early_is_a_miss_to_the_end():
    """Watched only until it diverged, it would leave the field to those that arrive."""
    curve = {"gradient_evaluations": [8, 96], "seconds": [1, 2], "eval_accuracy": [0.1, 0.99]}
    fresh = [{"study": 1, "reached": True, "epochs": 12, "curve": curve}] * 2
    fresh += [{"study": 1, "reached": False, "epochs": 0, "curve": {}},
              {"study": 1, "reached": False, "epochs": 1,
               "curve": {"gradient_evaluations": [8], "seconds": [1]}}] * 2
    terms = {"cap": 400, "fresh_seeds": 6, "metric": "eval_accuracy", "target": 0.99,
             "mode": "max"}
    task = {"terms": terms, "arms": {"a": {"studies": [record(90)], "fresh": fresh, "config": ""}}}
    times, watched = score.fresh_costs(task, "a")
    assert times == [96, 96, None, None, None, None] and watched == [96] * 6
    assert score.fresh_costs(task, "a", "epochs")[1] == [12] * 6
    (row,) = leaderboard.rows_of(task)
    assert row["fresh"].value == math.inf
    assert "<polyline" in page._svg(fresh, terms)


def test_the_curves_of_a_perplexity_are_on_a_log_scale_with_their_ends_and_target_named():
    fresh = [{"curve": {"gradient_evaluations": [10, 20], "eval_perplexity": [1000, 10]}}]
    drawn = page._svg(fresh, {"metric": "eval_perplexity", "mode": "min", "target": 100})
    assert 'class="run" points="320.0,0.0 640.0,220.0"' in drawn
    assert 'class="target" points="0.0,110.0 640.0,110.0"' in drawn  # halfway
    named = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert named == ["10", "1000", "100", "perplexity", "0", "20", "gradient evaluations"]


def test_sorting_by_the_ratio_puts_what_never_arrived_last():
    def row(arm, value):
        return {"arm": arm, "ratio": None if value is None else Estimate(value, 1.0, 2.0, 3)}

    rows = [row("never", math.nan), row("adamw", None), row("fast", 2.0), row("slow", 0.5)]
    assert [r["arm"] for r in sorted(rows, key=page._cheaper)] == ["never", "slow", "adamw", "fast"]


def test_performance_profiles_by_hand():
    costs = {"a": {"x": 10.0, "y": 20.0}, "b": {"x": 30.0, "y": math.inf}}
    assert score.performance_profile(costs, "x", 1.0) == 1.0
    assert score.performance_profile(costs, "y", 1.9) == 0.0
    assert score.performance_profile(costs, "y", 2.0) == 0.5


BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CLICKS = """<script>
addEventListener("load", () => {
  document.querySelectorAll("th")[0].click(); document.querySelectorAll("th")[0].click();
  document.querySelector(".row").click();
  document.title = [...document.querySelectorAll(".row td:first-child")].map(c => c.textContent)
    .join(",") + ";" + document.querySelectorAll(".more:not([hidden])").length;
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_html_page_sorts_and_unfolds_in_a_browser(tmp_path):
    path = tmp_path / "page.html"
    task = BOARD["tasks"]["cifar"]
    arms = {name: task["arms"][name] for name in ("adamw", "soap")}
    source = page.render_html({"tasks": {"cifar": {**task, "arms": arms}}})
    path.write_text(source.replace("</body>", CLICKS + "</body>"))
    dom = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--dump-dom", path.as_uri()],
                         capture_output=True, text=True, timeout=60).stdout
    assert "<title>soap,adamw;1</title>" in dom


SITE_CLICKS = """<script>
addEventListener("load", () => {
  const button = document.querySelectorAll("thead button")[1];
  const names = () => [...document.querySelectorAll("tbody th")].map(c => c.textContent).join("");
  const found = [];
  for (let i = 0; i < 2; i++) {
    button.click();
    found.push(names() + button.parentElement.getAttribute("aria-sort"));
  }
  const frame = document.createElement("iframe");
  frame.width = 390;
  frame.onload = () => {
    found.push(frame.contentDocument.documentElement.scrollWidth <= 390);
    document.title = found.join(";");
  };
  frame.srcdoc = SOURCE;
  document.body.append(frame);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_web_page_sorts_fits_a_phone_and_logs_no_error(tmp_path):
    lines = [("optimizer", "cost", "verdict"), ("a", "12 [1, 20]", "**holds**" + 60 * " long"),
             ("b", "never", ""), ("c", "9.5", "")]
    source = web.document({"Board: toy": web.table("toy", lines) + web.forest(
        "ratio", [("c", 0.5, 0.4, 0.7)]) + web.details("c", web.code("x" * 200))})
    clicks = SITE_CLICKS.replace("SOURCE", json.dumps(source).replace("</", "<\\/"))
    path = tmp_path / "page.html"
    path.write_text(source.replace("</body>", clicks + "</body>"), encoding="utf-8")
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--enable-logging=stderr",
                           "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
                          capture_output=True, text=True, timeout=60)
    assert "<title>cabascending;bacdescending;true</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_web_page_escapes_text_and_places_the_plot_by_hand():
    assert web.inline("`a<b` **holds** *cost* & <sub>x</sub>") == (
        '<code>a&lt;b</code> <strong class="holds">holds</strong> <em>cost</em> &amp; '
        " <small>x</small>")
    drawn = web.forest("ratio", [("<c>", 1.0, 0.5, 2.0)])  # 1 is halfway from 190 to 620 pixels
    assert 'x1="190.0" x2="620.0"' in drawn and 'cx="405.0"' in drawn and "&lt;c&gt;" in drawn


def test_the_committed_web_page_is_made_of_the_committed_records():
    html = (PAPER / "index.html").read_text(encoding="utf-8")
    assert html == site(), "python -m exp.site makes it again"
    assert not re.search(r'(src|href)="(?!#|data:|https://)', html)


def test_the_page_of_every_optimizer_is_made_of_its_file():
    board = {"arms": {"x": {"optimizer": {"name": "muon", "sam": {}}}}, "results": {"arms": {
        "x": {"cost": 120.0, "ratio": 0.5, "low": 0.25, "high": 1.0}}}}
    line = r"\| toy +\| x +\| 120 +\| 0.5 \[0.25, 1\] +\|"
    for name in ("muon", "sam"):
        text = optimizers.optimizer_page(name, optimizer_class(name), {"toy": board})
        assert re.search(line, text)
    made = optimizers.pages(read_boards())
    kept = {path.name: path.read_text(encoding="utf-8") for path in optimizers.FOLDER.glob("*.md")}
    assert kept == made, "python -m exp.site makes them again"


def test_the_committed_leaderboard_is_what_its_json_says(tmp_path):
    html = (PAPER / "leaderboard.html").read_text(encoding="utf-8")
    assert html == page.render_html(BOARD) and "http" not in html.replace("http-equiv", "")
    assert (PAPER / "leaderboard.md").read_text(encoding="utf-8") == leaderboard.render(BOARD)
    for task in BOARD["tasks"].values():
        for entry in task["arms"].values():
            if entry["config"]:
                shown = entry["studies"][score.representative(entry["studies"]) - 1]
                assert Path(entry["config"]).read_text(encoding="utf-8") == shown["text"]


def test_render_writes_every_page_from_its_json_alone(tmp_path):
    kept = ("leaderboard.json", "ablation_wikitext2.json")
    for name in kept:
        shutil.copy(PAPER / name, tmp_path / name)
    published.write_pages(tmp_path)
    for name in ("leaderboard.md", "leaderboard.html", "ablation_wikitext2.md"):
        assert (tmp_path / name).read_bytes() == (PAPER / name).read_bytes()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "ablation_wikitext2.png", *(f"leaderboard_{name}.png" for name in BOARD["tasks"])}
