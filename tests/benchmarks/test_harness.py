"""The harness on jobs of known speed, a peer that is not there, and sides that fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import harness
from benchmarks.cases import CASES, SOLOS, Case
from benchmarks.harness import Settings

TOY = Case("toy", "sleeps", "naps", 1.5, "toy_jobs", "toy_peer", "slow", "a sleeper", ())
QUICK = Settings(rounds=2, turn_seconds=0.1, case_seconds=60.0, most_foreign=1.0)


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.slow
def test_a_pair_of_known_speeds():
    result = program.measure(TOY, QUICK)
    assert result["status"] == "done"
    # Both sleep as long and ours does twice as much; a stall of the machine can hit one turn and not all.
    assert 1.2 < result["ratio"]["median"] < 3.3
    assert result["ratio"]["kept"] == 2
    assert len(result["rounds"]) == 2
    assert result["sides"]["ours"]["facts"]["parameters"] == 3
    assert result["sides"]["peer"]["peak_bytes"] > 2**20
    row = harness.row(json.loads(json.dumps(result)))
    assert "toy" in row
    assert "goal 1.5" in row


@pytest.mark.slow
def test_without_the_peer_ours_runs_alone_and_the_reason_is_given():
    result = program.measure(dataclasses.replace(TOY, needs=("no_such_package_at_all",)), QUICK)
    assert result["status"] == "peer skipped"
    assert "no_such_package_at_all" in result["reason"]
    assert "benchmarks/requirements.txt" in result["reason"]
    assert result["ours"]["rate"] > 0
    assert "peer skipped" in harness.row(result)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "says"), [("ours", "ZeroDivisionError"), ("peer", "ended with code 3")])
def test_a_side_that_fails_is_recorded_with_its_reason(side, says):
    module = {"ours": "toy_jobs", "peer": "toy_peer"}[side]
    other = dataclasses.replace(TOY, ours=module, peer=module, job="fault")
    result = program.measure(other, QUICK)
    assert result["status"] == "failed"
    assert says in result["reason"]
    assert "failed" in harness.row(result)


def test_every_busy_round_means_no_ratio():
    ratio = harness.compare([], 0.05)
    result = {"name": "toy", "status": "machine too busy", "ratio": ratio.json(), "goal": None, "unit": "", "peer": ""}
    assert "machine too busy" in harness.row(result)


def test_names_are_unique_and_shares_refer_to_the_measured_peak():
    names = [c.name for c in (*CASES, *SOLOS)]
    assert len(set(names)) == len(names)
    assert SOLOS[0].name == "peak"
    case = {"name": "x", "sides": {"ours": {"flops": 40.0, "units": 2.0}}, "ratio": {"ours": 3.0}}
    results = [{"name": "peak", "values": {"flops_per_s": 120.0}}, case]
    program.add_shares(results)
    assert case["share_of_peak"] == pytest.approx(0.5)
