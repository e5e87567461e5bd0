# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and geometric means of benchmark results.

A record is what --json writes: a dict of suite, row, allocator, metric, unit, median, min, max.
Every metric is a cost: less is better.
"""

import math
import statistics

FIELDS = ("suite", "row", "allocator", "metric", "unit", "median", "min", "max")


def record(suite, row, allocator, metric, unit, values):
    """One record from the values that the runs gave."""
    if not values:
        raise ValueError("no values for %s %s %s %s" % (suite, row, allocator, metric))
    return {
        "suite": suite,
        "row": row,
        "allocator": allocator,
        "metric": metric,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def ratio(value, base):
    """value / base, or None where there is no meaningful quotient."""
    if value is None or base is None or base <= 0 or value < 0:
        return None
    return value / base


def geometric_mean(ratios):
    """Of the positive ratios; None if there are none (a ratio of 0 has no logarithm)."""
    logs = [math.log(r) for r in ratios if r is not None and r > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None


def tables(records):
    """{(suite, metric, unit): {row: {allocator: record}}}, in the order of first appearance."""
    out = {}
    for r in records:
        rows = out.setdefault((r["suite"], r["metric"], r["unit"]), {})
        rows.setdefault(r["row"], {})[r["allocator"]] = r
    return out


def best_peer(cells, subject):
    """The record with the lowest median among all but the subject's own allocators, or None.

    `cells` is {allocator: record}; variants of the subject ("pcmalloc-static") are no peers.
    """
    peers = [r for name, r in cells.items() if not is_variant(name, subject)]
    return min(peers, key=lambda r: r["median"]) if peers else None


def is_variant(name, subject):
    return subject is not None and (name == subject or name.startswith(subject + "-"))


def ratios(cells, subject):
    """(subject / best peer, subject / glibc); None where it cannot be told."""
    if subject not in cells:
        return None, None
    value = cells[subject]["median"]
    peer = best_peer(cells, subject)
    glibc = cells.get("glibc") if subject != "glibc" else None
    return (
        ratio(value, peer["median"]) if peer else None,
        ratio(value, glibc["median"]) if glibc else None,
    )


def has_mean(suite):
    """Whether a mean over the suite's rows says something: RSS of unlike situations has none."""
    return suite in ("micro", "scale", "programs")


def against_glibc(rows, allocator):
    """Geometric mean over the rows that both have of allocator / glibc."""
    return geometric_mean(
        ratio(cells[allocator]["median"], cells["glibc"]["median"])
        for cells in rows.values()
        if allocator in cells and "glibc" in cells
    )


def against_best(rows, subject):
    """Geometric mean over rows of subject / best peer."""
    return geometric_mean(ratios(cells, subject)[0] for cells in rows.values())
