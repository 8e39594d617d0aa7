"""Intervals cover as often as they say, patients are the unit, and paired tests know their runs."""

from __future__ import annotations

import numpy as np
import pytest

from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.metrics.metric import mean_of_sums
from medmvl.evaluation.scoring import Answers, compare_answers, score_metric
from medmvl.evaluation.statistics import bootstrap_interval, cluster_sums, paired_test
from medmvl.evaluation.tasks.benchmark import Column

ACCURACY = METRICS["accuracy"]


def sums(values):
    return np.column_stack([values, np.ones(len(values))]).astype(np.float64)


def test_the_interval_of_a_mean_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = bootstrap_interval(sums(values), mean_of_sums, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_intervals_cover_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(sums(generator.random(60) < 0.7), mean_of_sums, resamples=200)
        covered += low <= 0.7 <= high
    # 95 % of 200 is 190; a percentile interval on 60 items covers a little less; 4 standard errors are 12.
    assert 176 <= covered <= 200


def test_questions_of_one_patient_are_not_independent(item):
    def rows(patients):
        return [
            item("yes", "yes" if index % 2 else "no", id=str(number), patient=f"{index if patients else number}")
            for number, index in enumerate(i for i in range(20) for _ in range(10))
        ]

    clustered, independent = (score_metric(ACCURACY, rows(patients)) for patients in (True, False))
    assert clustered.value == independent.value == 0.5
    width = [score.ci95[1] - score.ci95[0] for score in (clustered, independent)]
    assert width[0] == pytest.approx(width[1] * np.sqrt(10), rel=0.2)


def test_one_patient_has_no_interval(item):
    score = score_metric(ACCURACY, [item("x", "x", id="1", patient="p"), item("A", "a", id="2", patient="p")])
    assert (score.value, score.n, score.ci95) == (1, 2, None)


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    values = sums(np.random.default_rng(2).random(30))
    assert bootstrap_interval(values, mean_of_sums) == bootstrap_interval(values, mean_of_sums)
    assert bootstrap_interval(values, mean_of_sums) != bootstrap_interval(values, mean_of_sums, seed=1)


def test_cluster_sums():
    rows = np.arange(8.0).reshape(4, 2)
    assert cluster_sums(rows, [[0, 3], [1, 2]]).tolist() == [[6, 8], [6, 8]]


def test_a_paired_test_sees_a_small_steady_gain_that_intervals_hide():
    base = np.random.default_rng(3).random(80)
    test = paired_test(sums(base + 0.02), sums(base), mean_of_sums, 80)
    assert test.difference == pytest.approx(0.02)
    assert test.p_value < 0.01
    assert test.ci95 == pytest.approx((0.02, 0.02))


def test_p_values_of_equal_runs_are_uniform_enough():
    generator = np.random.default_rng(4)
    found = [
        paired_test(sums(generator.random(40)), sums(generator.random(40)), mean_of_sums, 40, resamples=200).p_value
        for _ in range(200)
    ]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.11  # 5 % expected; 4 standard errors are 6 %


def test_runs_are_compared_on_what_both_answered(item):
    column = Column("accuracy", ACCURACY)
    first = [item("x", "x", id=str(number)) for number in range(6)]
    second = [item("y" if number % 2 else "x", "x", id=str(number)) for number in range(3, 9)]
    test = compare_answers(column, Answers(first), Answers(second))
    assert test.n == 3
    assert test.difference == pytest.approx(2 / 3)
    assert compare_answers(column, Answers(first), Answers([item("x", "x", id="other")])) is None
