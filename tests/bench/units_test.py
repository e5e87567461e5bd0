# SPDX-License-Identifier: Apache-2.0
"""Statistics, ratios, tables, plots and the order of the runs, on numbers known beforehand."""

import io
import math
import os
import unittest
from unittest import mock
import xml.etree.ElementTree

from tests.testing import cases
import allocators
import bench
import markdown
import page
import plots
import run
import stats
import table


def record(row, allocator, median, low=None, high=None, suite="micro", metric="ns_per_op",
           unit="ns"):
    return {"suite": suite, "row": row, "allocator": allocator, "metric": metric, "unit": unit,
            "median": median, "min": low if low is not None else median,
            "max": high if high is not None else median}


SAMPLE = [
    record("a", "glibc", 40.0, 38.0, 44.0), record("a", "jemalloc", 20.0),
    record("a", "pcmalloc", 10.0, 9.0, 12.0),
    record("b", "glibc", 10.0), record("b", "jemalloc", 20.0), record("b", "pcmalloc", 5.0),
]


class Markdown(unittest.TestCase):
    def test_table(self):
        text = markdown.render(SAMPLE, ["glibc", "jemalloc", "pcmalloc"], "pcmalloc",
                               [("CPU", "fast")], "all")
        self.assertIn("- CPU: fast\n", text)
        self.assertIn("### micro: ns_per_op, ns\n", text)
        self.assertIn("| a | 40.0 | 20.0 | **10.0** | jemalloc | 0.50 | 0.25 |\n", text)
        self.assertIn("| b | 10.0 | 20.0 | **5.00** | glibc | 0.50 | 0.50 |\n", text)
        self.assertIn("| geometric mean / glibc | 1.00 | 1.00 | 0.35 |  | 0.50 | 0.35 |\n", text)


class Statistics(unittest.TestCase):
    def test_record_is_median_and_range(self):
        r = stats.record("s", "r", "glibc", "m", "ns", [5.0, 1.0, 100.0])
        self.assertEqual((r["median"], r["min"], r["max"]), (5.0, 1.0, 100.0))
        self.assertEqual(tuple(r), stats.FIELDS)
        even = stats.record("s", "r", "glibc", "m", "ns", [1.0, 2.0, 4.0, 100.0])
        self.assertEqual(even["median"], 3.0)
        with self.assertRaises(ValueError):
            stats.record("s", "r", "glibc", "m", "ns", [])

    def test_ratio_needs_a_positive_base(self):
        self.assertEqual(stats.ratio(6, 4), 1.5)
        self.assertEqual(stats.ratio(0, 4), 0)
        for value, base in ((1, 0), (1, -1), (-1, 1), (None, 1), (1, None)):
            self.assertIsNone(stats.ratio(value, base))

    def test_geometric_mean(self):
        self.assertAlmostEqual(stats.geometric_mean([0.5, 2.0]), 1.0)
        self.assertAlmostEqual(stats.geometric_mean([1.0, 4.0, None, 0]), 2.0)
        self.assertIsNone(stats.geometric_mean([None, 0]))

    def test_best_peer_is_never_the_subject_or_its_variant(self):
        cells = {"glibc": record("a", "glibc", 30.0), "jemalloc": record("a", "jemalloc", 20.0),
                 "pcmalloc": record("a", "pcmalloc", 10.0),
                 "pcmalloc-static": record("a", "pcmalloc-static", 5.0)}
        self.assertEqual(stats.best_peer(cells, "pcmalloc")["allocator"], "jemalloc")
        self.assertIsNone(stats.best_peer({"pcmalloc": cells["pcmalloc"]}, "pcmalloc"))

    def test_ratios_to_best_peer_and_glibc(self):
        rows = stats.tables(SAMPLE)[("micro", "ns_per_op", "ns")]
        self.assertEqual(stats.ratios(rows["a"], "pcmalloc"), (0.5, 0.25))
        self.assertEqual(stats.ratios(rows["b"], "pcmalloc"), (0.5, 0.5))
        self.assertEqual(stats.ratios(rows["a"], "glibc"), (4.0, None))
        self.assertEqual(stats.ratios(rows["a"], "absent"), (None, None))
        self.assertAlmostEqual(stats.against_glibc(rows, "pcmalloc"), math.sqrt(0.25 * 0.5))
        self.assertAlmostEqual(stats.against_glibc(rows, "jemalloc"), 1.0)
        self.assertAlmostEqual(stats.against_best(rows, "pcmalloc"), 0.5)


class Table(unittest.TestCase):
    def test_numbers(self):
        for value, text in ((0, "0"), (3.14159, "3.14"), (31.4159, "31.4"), (314.159, "314"),
                            (1234567.0, "1234567"), (0.0042, "0.0042"), (-2.5, "-2.50")):
            self.assertEqual(table.number(value), text)

    def test_bytes_are_scaled(self):
        self.assertEqual(table.byte_scale("B", [5 * 2**20]), (2**20, "MiB"))
        self.assertEqual(table.byte_scale("B", [2**10, 3 * 2**20]), (2**10, "KiB"))
        self.assertEqual(table.byte_scale("B", [5 * 2**10]), (2**10, "KiB"))
        self.assertEqual(table.byte_scale("ns", [5 * 2**30]), (1, "ns"))

    def test_columns_are_aligned_and_right(self):
        lines = table.render(SAMPLE, ["glibc", "jemalloc", "pcmalloc"], "pcmalloc",
                             metrics="all").splitlines()
        self.assertIn("[ns]", lines[0])
        self.assertEqual(lines[1].split(),
                         "row glibc jemalloc pcmalloc best peer "
                         "pcmalloc/best pcmalloc/glibc".split())
        self.assertEqual(lines[2].split(),
                         "a 40.0 (38.0–44.0) 20.0 10.0 (9.00–12.0) jemalloc 0.50 0.25".split())
        self.assertEqual(lines[3].split()[-3:], ["glibc", "0.50", "0.50"])
        self.assertEqual(lines[4].split()[:6], "geometric mean / glibc 1.00 1.00".split())
        self.assertEqual({len(line) for line in lines[1:]}, {len(lines[1])})

    def test_colour_only_when_asked_for(self):
        names = ["glibc", "jemalloc", "pcmalloc"]
        self.assertNotIn("\033", table.render(SAMPLE, names, "pcmalloc", metrics="all"))
        painted = table.render(SAMPLE, names, "pcmalloc", colour=True, metrics="all")
        self.assertIn(table.GREEN + "0.50", painted.replace(" ", ""))
        terminal = mock.Mock(isatty=lambda: True)
        for changes, coloured in (({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
            with mock.patch.dict(os.environ, changes):
                if not changes:
                    os.environ.pop("NO_COLOR", None)
                self.assertEqual(bench.in_colour(terminal), coloured)
                self.assertFalse(bench.in_colour(io.StringIO()))

    def test_failure_is_shown(self):
        text = table.render(SAMPLE[:3] + SAMPLE[4:], ["glibc", "jemalloc", "pcmalloc"], "pcmalloc",
                            failed={("micro", "b", "glibc")}, metrics="all")
        self.assertIn("failed", text)
        # Also where the allocator has no result at all.
        text = table.render(SAMPLE[:1], ["glibc", "other"], "pcmalloc",
                            failed={("micro", "a", "other")}, metrics="all")
        self.assertRegex(text, r"row\s+glibc\s+other\na\s.*failed")


class Running(unittest.TestCase):
    def names(self, *names):
        return [allocators.Allocator(n) for n in names]

    def test_round_robin_within_each_row(self):
        seen = []

        def job(row):
            def measure(allocator):
                seen.append(row + allocator.name)
                return [(row, "ns_per_op", "ns", float(len(seen)))]
            return run.Job("micro", row, measure)

        records, failed, _ = run.run_all([job("x"), job("y")], self.names("A", "B", "C"), 2)
        self.assertEqual(seen, ["xA", "xB", "xC"] * 2 + ["yA", "yB", "yC"] * 2)
        self.assertEqual(failed, set())
        first = [r for r in records if (r["row"], r["allocator"]) == ("x", "A")][0]
        self.assertEqual((first["min"], first["max"], first["median"]), (1.0, 4.0, 2.5))

    def test_a_failed_row_leaves_no_record_and_is_named(self):
        calls = []

        def measure(allocator):
            calls.append(allocator.name)
            if allocator.name == "B" and calls.count("B") == 2:
                raise run.RunError("crash")
            return [("x", "ns_per_op", "ns", 1.0)]

        stream = io.StringIO()
        records, failed, _ = run.run_all([run.Job("micro", "x", measure)], self.names("A", "B"), 3,
                                         run.Progress(6, stream))
        self.assertEqual(failed, {("micro", "x", "B")})
        self.assertEqual([r["allocator"] for r in records], ["A"])
        self.assertEqual(calls.count("B"), 2)
        self.assertIn("crash", stream.getvalue())

    def test_an_interrupt_keeps_the_rows_that_are_done(self):
        def job(row):
            def measure(allocator):
                if (row, allocator.name) == ("y", "B"):
                    raise KeyboardInterrupt
                return [(row, "ns_per_op", "ns", 1.0)]
            return run.Job("micro", row, measure)

        records, failed, interrupted = run.run_all(
            [job("x"), job("y"), job("z")], self.names("A", "B"), 2,
            run.Progress(12, io.StringIO()))
        self.assertEqual([(r["row"], r["allocator"]) for r in records], [("x", "A"), ("x", "B")])
        self.assertEqual((failed, interrupted), (set(), True))

    def test_the_object_that_malloc_came_from_is_checked(self):
        libc = allocators.Allocator("glibc")
        run.check_object(libc, "/lib/x86_64-linux-gnu/libc.so.6")
        with self.assertRaises(run.RunError):
            run.check_object(libc, "/usr/lib/libjemalloc.so.2")
        with self.assertRaises(run.RunError):
            run.check_object(allocators.Allocator("x", preload="/bin/true"), "/lib/libc.so.6")
        with self.assertRaises(run.RunError):
            run.check_object(allocators.Allocator("x", static=True), "/lib/libc.so.6")

    def test_output_that_breaks_off_is_an_error(self):
        with self.assertRaises(run.RunError):
            run.parse_lines('{"row":"a","metric":"m","unit":"ns","value":1}\n')

    def test_what_cannot_be_preloaded_is_refused(self):
        with self.assertRaises(allocators.AllocatorError):
            allocators.resolve("bad=/etc/passwd", None, "/nonexistent")
        with self.assertRaises(allocators.AllocatorError):
            allocators.resolve("bad=/no/such/file.so", None, "/nonexistent")
        with self.assertRaises(allocators.AllocatorError):
            allocators.resolve("pcmalloc", None, "/nonexistent")
        with self.assertRaises(allocators.AllocatorError):
            allocators.resolve("mine=/no such/file.so", None, "/nonexistent")


class Page(unittest.TestCase):
    def test_ticks_cover_the_top(self):
        for top in (0.003, 0.9, 1, 7, 44, 99.9, 101, 123456):
            ticks = plots.ticks(top)
            self.assertGreaterEqual(ticks[-1], top)
            self.assertTrue(3 <= len(ticks) <= 7, (top, ticks))

    def test_rows_become_points(self):
        self.assertEqual(page.axis_of("churn/16t"), ("churn", 16.0, "threads", True))
        self.assertEqual(page.axis_of("freed-blocks/0.5s"), ("freed-blocks", 0.5, "seconds", False))
        self.assertIsNone(page.axis_of("pair/32"))

    def test_bar_lengths_are_proportional(self):
        rows = stats.tables(SAMPLE)[("micro", "ns_per_op", "ns")]
        svg = plots.bars("a", rows["a"], ["pcmalloc", "glibc", "jemalloc"], 1)
        root = xml.etree.ElementTree.fromstring(svg)
        width = {r.get("class"): float(r.get("width")) for r in root.iter("rect")}
        self.assertAlmostEqual(width["c1"] / width["c0"], 4.0, places=1)
        self.assertAlmostEqual(width["c1"] / width["c2"], 2.0, places=1)

    def test_lines_keep_their_order(self):
        series = {"glibc": [(1.0, record("a/1t", "glibc", 10.0, 2.0, 15.0)),
                            (2.0, record("a/2t", "glibc", 20.0)),
                            (4.0, record("a/4t", "glibc", 5.0))]}
        root = xml.etree.ElementTree.fromstring(
            plots.lines("a", series, ["glibc"], "threads", "ns", 1, True))
        points = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
        self.assertAlmostEqual(points[1][0] - points[0][0], points[2][0] - points[1][0], delta=0.2)
        # Heights of the medians 10, 20, 5, counted downwards from the top.
        share = (points[0][1] - points[1][1]) / (points[2][1] - points[1][1])
        self.assertAlmostEqual(share, (20 - 10) / (20 - 5), places=2)
        self.assertLess(points[1][1], points[0][1])

    def test_names_are_escaped(self):
        text = page.render([record("<b>", "a&b", 1.0)], ["a&b"], "pcmalloc", [("x", "<y>")])
        self.assertNotIn("<b>", text)
        self.assertNotIn("a&b<", text)


if __name__ == "__main__":
    cases.main()
