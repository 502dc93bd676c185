"""Which kept runs count: settings and RECIPE numbers; records are compared, never imported."""

import json
import sys

import pytest

from exp.harness import recipes as recipes_module
from exp.harness.config import complete
from exp.harness.recipes import changes, recipe, recipes
from exp.harness.task import task_named
from exp.harness.toml import to_toml
from exp.jobs.freshness import Identity, folder_identity, identity, kept_identity, kept_recipes

TASK = task_named("grokking")


def settings(**optimizer):
    return complete({"experiment": {"task": "grokking", "epochs": 2}, "data": {"batch_size": 9},
                     "model": {"name": "grokking_transformer"},
                     "optimizer": {"name": "muon", **optimizer}}, TASK)


def test_a_run_names_every_module_that_computed_it():
    names = set(recipes(settings(sam={}), TASK))
    assert names == {"exp.harness", "exp.grokking.train", "data.batches", "data.modular",
                     "model.grokking_transformer", "optimizer.muon", "optimizer.sam",
                     "optimizer.parts"}
    plain = settings() | {"optimizer": {"name": "adamw"}}
    assert not any(name.startswith("optimizer") for name in recipes(plain, TASK))
    routed = settings() | {"optimizer": {"name": "adamw", "routing": "role"}}
    assert "optimizer.parts" in recipes(routed, TASK)


@pytest.mark.parametrize(("text", "number"), [
    ("", 1), ("RECIPE = 3\n", 3), ('"""Doc."""\n\nRECIPE = 12  # since then\n', 12),
    ("def f():\n    RECIPE = 2\n", 1)])
def test_the_number_is_read_from_the_source_and_1_without_one(tmp_path, monkeypatch, text, number):
    monkeypatch.setattr(recipes_module, "ROOT", tmp_path)
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.py").write_text(text)
    assert recipe("optimizer.mine") == number
    assert changes({"optimizer.mine": number}) == ""
    assert changes({"optimizer.mine": 7, "data.gone": 1}) == (
        f"optimizer.mine 7 -> {number}, data.gone 1 -> 0")
    assert changes({}, {"optimizer.mine": 1, "data.new": 2}) == "data.new 1 -> 2"


def test_a_kept_run_counts_by_settings_and_recipes():
    wanted = identity(settings(), TASK)
    assert Identity(wanted.settings, {}).counts_as(wanted)  # kept before there were numbers
    assert Identity(wanted.settings, wanted.recipes | {"optimizer.lion": 5}).counts_as(wanted)
    assert not Identity(wanted.settings, {"optimizer.muon": 2}).counts_as(wanted)
    assert not Identity(wanted.settings, None).counts_as(wanted)
    raised = Identity(wanted.settings, {**wanted.recipes, "optimizer.muon": 2})
    assert not wanted.counts_as(raised) and not Identity(wanted.settings, {}).counts_as(raised)
    assert not identity(settings(lr=0.5), TASK).counts_as(wanted)


def test_what_does_not_change_a_result_and_keys_that_came_later_do_not_matter():
    wanted, old = identity(settings(), TASK), settings()
    old["experiment"] |= {"seed": 9, "device": "cpu", "diagnostics": False, "checkpoints": False}
    del old["experiment"]["compile"], old["optimizer"]["nesterov"]
    assert kept_identity(old, {}, TASK).counts_as(wanted)
    old["optimizer"]["unheard_of"] = 1
    assert not kept_identity(old, {}, TASK).counts_as(wanted)


def test_wrappers_in_another_order_are_another_run():
    one, other = (identity(settings(**wrappers), TASK) for wrappers in (
        {"sam": {}, "lookahead": {}}, {"lookahead": {}, "sam": {}}))
    assert one.settings == other.settings and not one.counts_as(other)


def test_reading_a_record_imports_nothing_that_it_names(tmp_path, monkeypatch):
    package = tmp_path / "evil"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for table in ({"name": "evil:X", "lr": 0.1}, {"name": "adamw", "evil:X": {}}):
        kept = kept_identity(settings() | {"optimizer": table}, {}, TASK)
        assert kept.settings["optimizer"] == table
        assert kept.counts_as(Identity(kept.settings, {}))
        (tmp_path / "config.toml").write_text(to_toml(settings() | {"optimizer": table}))
        assert folder_identity(tmp_path, TASK).settings == kept.settings
    assert "evil" not in sys.modules


@pytest.mark.parametrize(("facts", "numbers"), [
    ({"commit": "a"}, {}), ({"recipes": {"a": 2}}, {"a": 2}),
    ({"recipes": {"a": 2}, "resumed_from": [{"recipes": {"a": 2}}]}, {"a": 2}),
    ({"recipes": {"a": 2}, "resumed_from": [{"recipes": {"a": 1}}]}, {"a": 0}),
    ({"recipes": {"a": 2}, "resumed_from": [{}]}, {"a": 0}),
    ({"recipes": {"a": 1}, "resumed_from": [{"recipes": None}]}, {"a": 1})])
def test_a_resumed_run_has_the_numbers_that_all_its_parts_share(tmp_path, facts, numbers):
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert kept_recipes(tmp_path / "run.json") == numbers


@pytest.mark.parametrize("text", [
    "", "[]", "{", "{}", '{"resumed_from": 3}', '{"resumed_from": [3]}'])
def test_a_damaged_run_json_has_no_numbers(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert kept_recipes(tmp_path / "run.json") is None
    assert kept_recipes(tmp_path / "none.json") is None
