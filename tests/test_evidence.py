"""Evidence and judgements: worked examples, and error rates of the rule."""

import math

import numpy as np
import pytest

from exp.report.evidence import exact, proportion, sample, unpaired
from exp.report.judgement import (
    Judgement,
    corrected,
    holm,
    in_words,
    judge_above,
    judge_all,
    judge_any,
    judge_below,
    judge_exact,
    judge_number,
)


def within(value, tolerance):
    return value - tolerance, value + tolerance


@pytest.mark.parametrize(("values", "claimed", "tolerance", "word", "needed"), [
    ((115, 110, 121, 118, 112, 109, 124, 117), 140, 28, "holds", None),
    ((90.1, 90.5, 90.3), 90.2, 0.5, "holds", None),
    ((90.1, 90.5, 90.3), 92.0, 0.5, "does not hold", None),
    ((90.1,), 90.1, 0.5, "inconclusive", None),  # one seed has no interval
    # 95 % [3.03, 11.97], 90 % [4.27, 10.73]: the nearer edge, 5, is 2.5 from the mean; s 2.6771.
    # Nine seeds: (1.8595 + 0.8889) 2.6771 / 3 = 2.453; eight: 2.638.
    ((7.5, 4.0, 10.5, 8.0), 4.0, 1.0, "inconclusive", 9),
])
def test_a_number_is_judged_by_two_one_sided_tests(values, claimed, tolerance, word, needed):
    found = judge_number(sample(values), claimed, within(claimed, tolerance))
    assert (found.word, found.needed) == (word, needed)


def test_the_intervals_behind_the_worked_examples():
    low, high = sample([115, 110, 121, 118, 112, 109, 124, 117]).interval(0.9)
    assert (low, high) == pytest.approx((112.210092, 119.289908), abs=1e-6)
    ours = sample([90.1, 90.5, 90.3])
    assert ours.interval(0.9) == pytest.approx((89.962829, 90.637171), abs=1e-6)
    assert ours.interval(0.95) == pytest.approx((89.803172, 90.796828), abs=1e-6)
    low, high = ours.prediction(0.95, 1)
    assert high - ours.value == pytest.approx(0.993655, abs=1e-6)
    assert sample([4.2, -3.1, 6.0]).interval(0.9) == pytest.approx((-5.757566, 10.490899), abs=1e-6)


def test_a_claimed_number_that_one_run_may_have_shown_is_not_refuted():
    # On the log scale: mean 33, 95 % interval above 24, but 20 is within the prediction of one run.
    values = [24, 27, 29, 31, 34, 36, 41, 48]
    found = judge_number(sample(values, log=True), 20, (20 / 1.2, 20 * 1.2))
    assert (found.word, found.why) == ("inconclusive", "the claimed number rests on 1 run")
    many = judge_number(sample(values, log=True), 20, (20 / 1.2, 20 * 1.2), runs=8)
    assert many.word == "does not hold"


@pytest.mark.parametrize(("values", "floor", "word"), [
    ((4.2, -3.1, 6.0), 0.5, "inconclusive"), ((2.5, 2.8, 2.9), 0.6, "holds"),
    ((-15.2, -24.1, -7.0), 0.5, "does not hold"), ((0.1, 0.12, 0.14, 0.1), 0.5, "holds"),
    ((-0.1, 0.1, 0.2, -0.2), 0.5, "does not hold"),  # surely below what is worth naming
    ((3.0,), 0.5, "inconclusive")])
def test_an_order_is_judged_by_one_sided_bounds(values, floor, word):
    assert judge_above(sample(values), 0.0, floor).word == word
    assert judge_below(sample([-value for value in values]), 0.0, floor).word == word


def test_seeds_that_never_got_there_are_judged_by_order_statistics():
    never = math.inf
    ours = sample([450, 700, never, never, never, never, never, never], log=True)
    assert ours.interval(0.9) == (700, never)  # the second to the seventh of eight: 93 %
    assert ours.interval(0.95) == (450, never)  # all of them: 99.2 %
    assert (ours.value, ours.estimate.low) == (never, 450)
    assert judge_above(ours, 600).word == "holds"
    assert judge_above(sample([450, 500, *[never] * 6], log=True), 600).word == "inconclusive"
    assert judge_above(sample([never] * 4, log=True), 600).word == "inconclusive"  # 2^-4 > 0.05
    assert judge_above(sample([never] * 5, log=True), 600).word == "holds"
    # Nothing is known of a pair of which neither arrived: either end may be its.
    unknown = sample([0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.nan], log=True)
    assert unknown.interval(0.9) == (0.0, 7.0)
    assert sample([math.inf] * 39).prediction(0.95, 1) == (math.inf, math.inf)
    assert sample([math.inf] * 38).prediction(0.95, 1) == (-math.inf, math.inf)


def test_other_kinds_of_evidence():
    assert proportion(8, 10, 100).interval(0.95) == pytest.approx((44.39, 97.48), abs=0.01)
    assert judge_above(proportion(0, 0), 50).word == "inconclusive"
    welch = unpaired([10.0, 12.0, 14.0], [1.0, 2.0, 6.0])
    from scipy import stats
    by_scipy = stats.ttest_ind([10, 12, 14], [1, 2, 6], equal_var=False).confidence_interval(0.9)
    assert welch.interval(0.9) == pytest.approx((by_scipy.low, by_scipy.high))
    assert unpaired([1.0], [2.0]).interval(0.9) == (-math.inf, math.inf)
    assert judge_number(exact([-4.7, -3.3], 2), 5.0, (0.0, 10.0)).word == "does not hold"
    assert judge_below(exact([0.0, 0.0], 2), 1.0).word == "holds"
    assert [judge_exact(fact) for fact in (True, False)] == [
        Judgement("holds", 1e-6), Judgement("does not hold", 1e-6)]


def test_p_is_the_least_alpha_of_the_verdict_and_holm_may_take_it_back():
    values = [1.0, 2.0, 3.0, 2.5]
    found = judge_above(sample(values), 0.0)
    from scipy import stats
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue,
                                    rel=1e-3)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    words = [part.word for part in corrected([
        Judgement("holds", 0.01), Judgement("does not hold", 0.03), Judgement("inconclusive")])]
    assert words == ["holds", "inconclusive", "inconclusive"]
    parts = [Judgement("holds", 0.01), Judgement("does not hold", 0.02)]
    assert judge_all(parts) == Judgement("does not hold", 0.02)
    assert judge_all([parts[0], parts[0]]).word == "holds"
    assert judge_all([parts[0], Judgement("inconclusive", needed=7)]).needed == 7


def test_of_values_that_are_all_equal_only_the_order_is_known():
    assert judge_above(sample([1.0] * 4), 0.0) == Judgement("inconclusive", needed=5,
                                                            leaning="holds")
    found = judge_above(sample([1.0] * 5), 0.0)
    assert (found.word, found.p) == ("holds", pytest.approx(2**-5, rel=1e-3))


def test_seeds_needed_count_from_the_value_that_decides():
    # Mean 0.2, s 1.1: it fails for being below the floor, 0.8 away, long before it holds.
    # Fourteen seeds: (1.7709 + 0.8702) 1.1 / sqrt(14) = 0.776; thirteen: 0.810.
    found = judge_above(sample([-0.9, 0.2, 1.3]), 0.0, 1.0)
    assert (found.word, found.needed) == ("inconclusive", 14)
    assert judge_below(sample([0.9, -0.2, -1.3]), 0.0, 1.0).needed == found.needed


def test_an_open_verdict_needs_more_seeds_than_it_has():
    # Mean 10, s 1.414; the bound is 4 s below, and the one-sided 95 % bound of two seeds 4.46 s.
    found = judge_above(sample([9.0, 11.0]), 10 - 4 * 2**0.5)
    assert (found.word, found.needed) == ("inconclusive", 3)


def test_one_of_several_parts_that_has_to_hold():
    yes, no = Judgement("holds", 0.02), Judgement("does not hold", 0.04)
    open_to = {word: Judgement("inconclusive", needed=n, leaning=word)
               for word, n in (("holds", 30), ("does not hold", 7))}
    assert judge_any([no, no]) == no
    assert judge_any([yes, no]) == Judgement("holds", 0.04)  # twice 0.02
    assert judge_any([Judgement("holds", 0.03), *open_to.values()]).word == "inconclusive"
    # The first part that would decide counts, or all of them have to.
    assert judge_any(list(open_to.values())).needed == 30
    assert judge_all(list(open_to.values())).needed == 7
    assert judge_all([yes, open_to["holds"]]).needed == 30
    assert judge_all([open_to["holds"], Judgement("inconclusive", why="on the edge")]).why


@pytest.mark.parametrize(("verdict", "n", "words"), [
    (Judgement("holds", 0.01), 3, "**holds** so far"),
    (Judgement("inconclusive", needed=12), 3, "**inconclusive** so far, 12 runs needed"),
    (Judgement("inconclusive"), 1, "**inconclusive** so far: one run has no interval"),
    (Judgement("inconclusive", why="on the edge"), 3, "**inconclusive** so far: on the edge"),
    (Judgement("inconclusive", needed=12, why="p 0.1"), 3,
     "**inconclusive** so far, 12 runs needed (p 0.1)")])
def test_a_verdict_in_words(verdict, n, words):
    assert in_words(verdict, n, "run", " so far") == words


def test_error_rates_of_the_rule():
    """With no effect and three seeds an order "holds" in 5 %; a true claim of one run is refuted in
    at most 5 %; one that is off by three tolerances is refuted nearly always."""
    rng = np.random.default_rng(0)
    tries = 400
    words = [judge_above(sample(rng.normal(size=3)), 0.0, 0.2).word for _ in range(tries)]
    assert words.count("holds") / tries == pytest.approx(0.05, abs=0.03)
    assert words.count("does not hold") / tries == pytest.approx(0.08, abs=0.04)
    true = [judge_number(sample(rng.normal(size=8)), claim, within(claim, 0.5)).word
            for claim in rng.normal(size=tries)]
    assert true.count("does not hold") / tries < 0.075
    false = [judge_number(sample(rng.normal(size=5)), 6.0, within(6.0, 2.0)).word
             for _ in range(tries)]
    assert false.count("does not hold") / tries > 0.95 and "holds" not in false
