# SPDX-License-Identifier: Apache-2.0
"""Which rows each suite has. The programs under benchmarks/ list their own rows."""

import os
import re

import programs
import run
import warm

SUITES = ("micro", "scale", "memory", "linearity", "programs")


def listed(bin_dir, binary):
    argv = [os.path.join(bin_dir, binary)]
    argv += ["--benchmark_list_tests"] if binary == "micro" else ["list"]
    names = run.execute(argv, dict(os.environ, LD_PRELOAD="")).split()
    return [re.sub(r"/iterations:\d+$", "", name) for name in names]


def micro(bin_dir, quick):
    return [run.micro_job(bin_dir, row, 0.05 if quick else 0.2) for row in listed(bin_dir, "micro")]


def scale(bin_dir, quick):
    arguments = ["scale=0.1", "settle=0.1"] if quick else []
    return [run.program_job("scale", bin_dir, "scale", row, arguments)
            for row in listed(bin_dir, "scale")]


MEMORY_QUICK = ["megabytes=85", "seconds=2", "simulated=360", "threads=200", "later=1"]


def memory(bin_dir, quick):
    jobs = []
    for row in listed(bin_dir, "memory"):
        arguments = list(MEMORY_QUICK) if quick else []
        if quick and row in ("size-shift", "cache-traffic"):
            arguments[0] = "megabytes=20"
        jobs.append(run.program_job("memory", bin_dir, "memory", row, arguments))
    arguments = ["scale=0.1", "settle=0.5"] if quick else ["settle=2"]
    jobs.append(run.program_job("memory", bin_dir, "scale", "churn/64t", arguments,
                                metrics=("peak_rss_bytes", "rss_bytes")))
    return jobs


def linearity(bin_dir, quick):
    """Heaps up to 8 GiB, as far as half of the free memory goes."""
    largest = 64 if quick else warm.meminfo().get("MemAvailable", 1 << 30) // 2 >> 20
    jobs = []
    for row in listed(bin_dir, "linearity"):
        size = int(row.rsplit("/", 1)[1])
        if row.startswith("heap-MiB/") and size > largest:
            continue
        if row.startswith("spans/") and quick and size > 1000:
            continue
        arguments = ["operations=100000"] if quick else []
        heap = (size << 20) * 5 // 4 if row.startswith("heap-MiB/") else 0
        jobs.append(run.program_job("linearity", bin_dir, "linearity", row, arguments,
                                    memory=heap))
    return jobs


def jobs(names, bin_dir, quick, rows, work_dir, install_missing=True):
    """All jobs of the suites `names`; `rows` is a regular expression or empty. Also notes."""
    pattern = re.compile(rows) if rows else None
    out, notes = [], []
    for name in names:
        if name == "programs":
            found, left_out = programs.jobs(bin_dir, quick, pattern, work_dir,
                                            install_missing)
            notes += left_out
        else:
            found = {"micro": micro, "scale": scale, "memory": memory,
                     "linearity": linearity}[name](bin_dir, quick)
            found = [j for j in found if pattern is None or pattern.fullmatch(j.row)]
        out += found
    return out, notes
