# SPDX-License-Identifier: Apache-2.0
"""Runs jobs interleaved over allocators, one process for each row, allocator and run."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Callable

import allocators as allocators_module
import stats

TIMEOUT_SECONDS = 900

# Metrics that depend on how many iterations Google Benchmark chose, or that it reports itself.
_MICRO_UNITS = {
    "ns_per_op": ("ns_per_op", "ns"),
    "cycles_per_op": ("cycles_per_op", "cycles"),
    "tsc_cycles_per_op": ("cycles_per_op", "TSC cycles"),
    "user_cycles_per_op": ("cycles_per_op", "user cycles"),
    "instructions_per_op": ("instructions_per_op", "instructions"),
    "user_instructions_per_op": ("instructions_per_op", "user instructions"),
    "page_faults_per_op": ("page_faults_per_op", "faults"),
    "peak_rss_bytes": ("peak_rss_bytes", "B"),
    "rss_bytes": ("rss_bytes", "B"),
}


class RunError(Exception):
    """One run gave no valid result."""


@dataclasses.dataclass
class Job:
    """One row of a suite. `measure(allocator)` returns [(row, metric, unit, value)]."""

    suite: str
    row: str
    measure: Callable
    supports: Callable = lambda allocator: not allocator.static
    memory: int = 0  # bytes that a run touches, where that is known beforehand


def execute(argv, env, timeout=TIMEOUT_SECONDS):
    """stdout of a process that must succeed."""
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout,
                              check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError("no end after %d s" % timeout) from error
    if done.returncode != 0:
        raise RunError("exit status %d: %s" % (done.returncode, done.stderr.strip()[-300:]))
    return done.stdout


def check_object(allocator, path):
    """What malloc resolved to in the process must be the allocator that was asked for."""
    if allocator.static:
        if os.path.basename(path) != "micro_static":
            raise RunError("malloc came from %s, not from the program itself" % path)
        return
    is_libc = os.path.basename(path).startswith(("libc.so", "libc-"))
    if allocator.preload:
        if not os.path.exists(path) or not os.path.samefile(path, allocator.preload):
            raise RunError("malloc came from %s, not %s" % (path, allocator.preload))
    elif not is_libc:
        raise RunError("malloc came from %s, not from the C library" % path)


def parse_micro(text, row):
    """Google Benchmark's JSON to [(row, metric, unit, value)] and malloc's object."""
    report = json.loads(text)
    runs = report["benchmarks"]
    if len(runs) != 1:
        raise RunError("%d benchmarks for one row" % len(runs))
    if runs[0].get("error_occurred"):
        raise RunError(runs[0].get("error_message", "error"))
    results = [
        (row, metric, unit, float(runs[0][name]))
        for name, (metric, unit) in _MICRO_UNITS.items()
        if name in runs[0]
    ]
    return results, report["context"]["malloc"]


def parse_lines(text):
    """The JSON lines of the other programs to [(row, metric, unit, value)] and malloc's object."""
    results, malloc_object = [], None
    for line in text.splitlines():
        entry = json.loads(line)
        if "malloc" in entry:
            malloc_object = entry["malloc"]
        else:
            results.append((entry["row"], entry["metric"], entry["unit"], float(entry["value"])))
    if malloc_object is None or not results:
        raise RunError("the benchmark did not finish its output")
    return results, malloc_object


def micro_job(bin_dir, row, min_time):
    def measure(allocator):
        binary = "micro_static" if allocator.static else "micro"
        argv = [
            os.path.join(bin_dir, binary),
            # Rows with a fixed count carry it in Google Benchmark's name.
            "--benchmark_filter=^%s(/iterations:.*)?$" % row,
            "--benchmark_format=json",
            "--benchmark_min_time=%g" % min_time,
        ]
        text = execute(argv, allocators_module.environment(allocator))
        results, malloc_object = parse_micro(text, row)
        check_object(allocator, malloc_object)
        return results

    return Job("micro", row, measure, supports=lambda allocator: True)


def program_job(suite, bin_dir, binary, row, arguments, metrics=None, memory=0):
    """A row of scale, memory or linearity."""

    def measure(allocator):
        argv = [os.path.join(bin_dir, binary), "run", row, *arguments]
        text = execute(argv, allocators_module.environment(allocator))
        results, malloc_object = parse_lines(text)
        check_object(allocator, malloc_object)
        return [r for r in results if metrics is None or r[1] in metrics]

    return Job(suite, row, measure, memory=memory)


class Progress:
    """One line on stderr, rewritten in place; nothing where stderr is no terminal."""

    def __init__(self, total, stream=None):
        self.total, self.done = total, 0
        self.stream = stream or sys.stderr
        self.on = self.stream.isatty()
        self.begin = time.monotonic()

    def step(self, text):
        self.done += 1
        spent = time.monotonic() - self.begin
        left = spent / self.done * (self.total - self.done)
        self.show("[%d/%d, %d s left] %s" % (self.done, self.total, left, text))

    def show(self, text):
        if self.on:
            self.stream.write("\r\033[K" + text)
            self.stream.flush()

    def message(self, text):
        self.stream.write(("\r\033[K" if self.on else "") + text + "\n")

    def finish(self):
        if self.on:
            self.stream.write("\r\033[K")
            self.stream.flush()


def run_all(jobs, allocators, runs, progress=None, warmer=None):
    """(records, failed, interrupted). Round robin: each run of a row visits all allocators, A B C A
    B C.

    So what drifts on the machine hits all of them alike. `failed` is a set of (suite, row,
    allocator); an allocator that failed a row is not tried on it again and has no record there.
    `warmer` (warm.py) sees to the memory that a run will find free. An interrupt ends the runs; the
    row that it hits has no record.
    """
    progress = progress or Progress(0)
    values, failed, interrupted = {}, set(), False
    for job in jobs:
        chosen = [a for a in allocators if job.supports(a)]
        try:
            found = run_job(job, chosen, runs, failed, progress, warmer)
        except KeyboardInterrupt:
            progress.message("interrupted")
            interrupted = True
            break
        values.update(found)
    progress.finish()
    records = [
        stats.record(suite, row, name, metric, unit, samples)
        for (suite, row, metric, unit, name), (job_row, samples) in values.items()
        if (suite, job_row, name) not in failed
    ]
    return records, failed, interrupted


def run_job(job, allocators, runs, failed, progress, warmer):
    """{(suite, row, metric, unit, allocator): (the job's row, values)} of one row;
    adds to `failed`."""
    values = {}
    for number in range(runs):
        for allocator in allocators:
            progress.step("%s %s %s run %d/%d" %
                          (job.suite, job.row, allocator.name, number + 1, runs))
            if (job.suite, job.row, allocator.name) in failed:
                continue
            try:
                if warmer:
                    warmer.before(job)
                results = job.measure(allocator)
            except (RunError, ValueError, KeyError) as error:
                failed.add((job.suite, job.row, allocator.name))
                progress.message("FAILED %s %s %s: %s" %
                                 (job.suite, job.row, allocator.name, error))
                continue
            if warmer:
                warmer.after(job, results)
            for row, metric, unit, value in results:
                key = (job.suite, row, metric, unit, allocator.name)
                values.setdefault(key, (job.row, []))[1].append(value)
    return values
