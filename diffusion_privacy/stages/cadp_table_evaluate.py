"""Stage `evaluate` of a private table: what a release is good for, beside originals, public rows and the control."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffusion_privacy.audits.table_utility import Interval, Transfer, distance, train_and_test
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.data.tables import Table
from diffusion_privacy.settings_cadp import CadpTable
from diffusion_privacy.stages import cadp_study, cadp_table_private_arm
from diffusion_privacy.stages.cadp_flow import TableFlow
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng


@dataclasses.dataclass(frozen=True)
class TableArm:
    """Rows to train on.

    Attributes:
      name: unique.
      kind: ``original``, ``public``, ``released`` or ``control``.
      epsilon: ε of the set as a whole; None where none is claimed or none of the private rows is in it.
      tables: the set, or several draws of it.
    """

    name: str
    kind: str
    epsilon: float | None
    tables: tuple[Table, ...]


def make_arms(
    settings: CadpTable, workdir: Workdir, parts: cadp_study.Parts[Rows], flow: TableFlow
) -> tuple[TableArm, ...]:
    """The private rows themselves, the public ones, every release, and draws of the flow for the published columns."""
    releases = [cadp_study.load_release(workdir, e, parts.private) for e in settings.release.epsilons]
    published = releases[0].records.label
    draws = []
    for draw in range(settings.evaluation.draws):
        vectors = flow.sample(published, rng.stream(settings.seed, "control", draw))
        draws.append(flow.table(vectors, published, f"control {draw}"))
    return (
        TableArm("original", "original", None, (parts.private.table,)),
        TableArm("public", "public", None, (parts.public.table,)),
        *(TableArm(f"released {r.epsilon:g}", "released", r.spent, (r.records.table,)) for r in releases),
        TableArm("control", "control", None, tuple(draws)),
    )


def _entry(settings: CadpTable, arm: TableArm, private: Table, found: Transfer) -> dict[str, Any]:
    options = settings.evaluation
    apart = None
    if arm.kind != "original":
        apart = dataclasses.asdict(distance(private, arm.tables, options.cells, options.level))
    return {
        "name": arm.name,
        "kind": arm.kind,
        "epsilon": arm.epsilon,
        "n_train": len(arm.tables[0]),
        "score": _score(found.score, found.draws),
        "distance": apart,
    }


def _score(interval: Interval, draws: tuple[float, ...]) -> dict[str, Any]:
    return {**dataclasses.asdict(interval), "seeds": list(draws)}


def _private_training(settings: CadpTable, workdir: Workdir, parts: cadp_study.Parts[Rows]) -> list[dict[str, Any]]:
    """Models of the private rows themselves, each at all that the release of its ε spends; none with dp_steps = 0."""
    if not settings.evaluation.dp_steps:
        return []
    private, epsilons = parts.private, settings.release.epsilons
    # At the study's δ: that of a pure release is 0, which no Gaussian noise has.
    spends = [(cadp_study.load_release(workdir, e, private).spent, settings.release.delta) for e in epsilons]
    found = cadp_table_private_arm.transfers(settings, private.table, parts.test.table, spends)
    return [
        {
            "name": f"dp-sgd {e:g}",
            "kind": "dp-sgd",
            "epsilon": spend[0],
            "n_train": len(private),
            "score": _score(one.score, one.draws),
            "distance": None,
        }
        for e, spend, one in zip(epsilons, spends, found, strict=True)
    ]


def evaluate(settings: CadpTable, workdir: Workdir) -> None:
    """Scores a model of each table and measures how far each is from the private rows; writes evaluation.json."""
    path = workdir.root / "evaluation.json"
    if path.exists():
        return
    parts = cadp_study.load_parts(settings, workdir)
    flow = cadp_study.load_flow(settings, workdir, parts.private)
    options, private, test = settings.evaluation, parts.private.table, parts.test.table
    with workdir.timed("evaluate tables"):
        arms = make_arms(settings, workdir, parts, flow)
        found = [train_and_test(arm.tables, test, options.target, level=options.level) for arm in arms]
        entries = [_entry(settings, arm, private, one) for arm, one in zip(arms, found, strict=True)]
        entries += _private_training(settings, workdir, parts)
    workdir.write_json(
        path,
        {
            "n_test": len(test),
            "level": options.level,
            "target": options.target,
            "measure": found[0].measure,
            "baseline": found[0].baseline,
            "cells": options.cells,
            "outside_range": private.outside(),
            "dropped": private.dropped,
            "arms": entries,
        },
    )
