"""The budget: cheapest first, the rest a sample that turns with the date."""

import math
from datetime import date, timedelta

import pytest

from papers_shared.tables.budget import choose, parse

DAY = date(2024, 1, 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15m", 900), ("900s", 900), ("900", 900), ("1.5h", 5400), ("0", 0), ("all", math.inf)],
)
def test_budgets_are_written_as_people_write_them(text, seconds):
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "15 m", "-1", "ten", "5d"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="write 15m, 900s, 2h, 0 or all"):
        parse(text)


def test_all_runs_everything_and_nothing_runs_nothing():
    jobs = {"a": 0, "b": 1, "c": 1e9}
    assert choose(jobs, math.inf, day=DAY) == {"a", "b", "c"}
    assert choose(jobs, 0, day=DAY) == set()


def test_what_fits_together_is_run_whole():
    assert choose({"a": 30, "b": 60}, 90, day=DAY) == {"a", "b"}


def test_the_cheapest_are_always_run_and_the_budget_is_never_exceeded():
    jobs = {f"job{i}": 10.0 * i for i in range(1, 12)}
    for day in range(11):
        chosen = choose(jobs, 90, day=DAY + timedelta(day))
        assert {"job1", "job2", "job3"} <= chosen
        assert sum(jobs[job] for job in chosen) <= 90


def test_every_job_that_fits_into_the_sample_gets_its_day():
    jobs = {f"job{i}": 30.0 for i in range(7)}
    ever = set()
    for day in range(7):
        ever |= choose(jobs, 90, day=DAY + timedelta(day))
    assert ever == set(jobs)
    assert choose(jobs, 90, day=DAY) == choose(jobs, 90, day=DAY)


def test_a_job_that_cannot_run_takes_nothing_of_the_budget():
    jobs = {"blocked": 50.0, "other": 60.0}
    assert choose(jobs, 60, day=DAY, runnable=lambda job: job != "blocked") == {"other"}


def test_a_table_s_name_stands_for_its_parts_too():
    from papers_shared.tables.entries import belongs

    assert belongs("table5_sets", ["table5"])
    assert belongs("table5", ["table5"])
    assert not belongs("table50", ["table5"])
