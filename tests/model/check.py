#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the model of the slab protocol (slab.pml) in every configuration.

A row that must hold is searched exhaustively; a row that must fail (a kernel that breaks the
scheme, a mutation of the protocol) must yield a counterexample. Exit status 1 when any row differs.

  check.py              the rows that continuous integration runs
  check.py --full       and the larger configurations
  check.py --only NAME  one row (repeatable)
  check.py --trail NAME the shortest counterexample of a row, step by step
  check.py --list, --json
"""

import argparse
import collections
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = [os.path.join(HERE, name) for name in ('slab.pml', 'kernel.pml')]

# What a section is aborted by (preemption, migration, fence) and whether cpu_id_start is rewritten.
KERNELS = {
    'CACHE_OK': dict(ABORT_PREEMPT=1, ABORT_MIGRATE=1, ABORT_FENCE=1, REWRITE=1),
    'NO_CACHE': dict(ABORT_PREEMPT=1, ABORT_MIGRATE=1, ABORT_FENCE=1, REWRITE=0),
    'NO_RSEQ': dict(ABORT_PREEMPT=0, ABORT_MIGRATE=0, ABORT_FENCE=0, REWRITE=0),
    'NO_RSEQ_REWRITES': dict(ABORT_PREEMPT=0, ABORT_MIGRATE=0, ABORT_FENCE=0, REWRITE=1),
    'MIGRATION_ONLY': dict(ABORT_PREEMPT=0, ABORT_MIGRATE=1, ABORT_FENCE=0, REWRITE=0),
    'FENCE_ABORTS_NOT': dict(ABORT_PREEMPT=1, ABORT_MIGRATE=1, ABORT_FENCE=0, REWRITE=1),
    'PREEMPTION_ABORTS_NOT': dict(ABORT_PREEMPT=0, ABORT_MIGRATE=1, ABORT_FENCE=1, REWRITE=1),
}

DEFAULTS = dict(LEGACY=0, CID=0, WEAK=0, BATCH=0, SWAP=0, STOP_BOTH=0, FIRST_USE=0, OBJECTS=2)
# Without partial-order reduction: it saves nothing here (nearly every step touches globals), and
# without the model's `provided` clauses Spin 6.5.2 misses unlocked-first-use with it.
PAN_FLAGS = ['-w', '-DSAFETY', '-DCOLLAPSE', '-DNOREDUCE', '-DMEMLIM=6000']
# Deep enough for an exhaustive search, which is checked. A counterexample needs no deep search.
MAX_DEPTH = {'ci': 4_000_000, 'full': 20_000_000}
MAX_DEPTH_OF_COUNTEREXAMPLE = 20_000

Row = collections.namedtuple('Row', 'name scheme kernel expected options tier')


def _row(name, scheme, kernel, expected, tier='ci', **options):
    flags = {'v2-cpu': {}, 'v2-cid': {'CID': 1}, 'legacy': {'LEGACY': 1}}[scheme]
    options = {**DEFAULTS, **KERNELS[kernel], **flags, **options}
    return Row(name, scheme, kernel, expected, options, tier)


ROWS = [
    # The V2-safe scheme holds wherever sections are aborted.
    _row('v2-cache-ok', 'v2-cpu', 'CACHE_OK', 'holds'),
    _row('v2-no-cache', 'v2-cpu', 'NO_CACHE', 'holds'),
    _row('v2-batch', 'v2-cpu', 'NO_CACHE', 'holds', BATCH=2),
    _row('v2-first-use', 'v2-cpu', 'NO_CACHE', 'holds', FIRST_USE=1),
    _row('v2-swap', 'v2-cpu', 'NO_CACHE', 'holds', SWAP=1),
    _row('v2-both-cpus', 'v2-cpu', 'NO_CACHE', 'holds', STOP_BOTH=1, BATCH=2),
    _row('v2-cid', 'v2-cid', 'NO_CACHE', 'holds', BATCH=2),
    _row('v2-weak', 'v2-cpu', 'NO_CACHE', 'holds', WEAK=1, BATCH=2),
    _row('v2-cid-weak', 'v2-cid', 'NO_CACHE', 'holds', WEAK=1, BATCH=2),
    _row('v2-weak-first-use', 'v2-cpu', 'NO_CACHE', 'holds', WEAK=1, BATCH=2, FIRST_USE=1),
    _row('v2-weak-swap', 'v2-cpu', 'NO_CACHE', 'holds', 'full', WEAK=1, BATCH=2, SWAP=1),
    # The legacy scheme needs the rewriting too.
    _row('legacy-cache-ok', 'legacy', 'CACHE_OK', 'holds'),
    _row('legacy-forced', 'legacy', 'NO_CACHE', 'fails'),
    _row('legacy-no-rseq', 'legacy', 'NO_RSEQ_REWRITES', 'fails'),
    # Kernels that do not abort.
    _row('v2-no-rseq', 'v2-cpu', 'NO_RSEQ', 'fails'),
    _row('v2-no-rseq-rewrites', 'v2-cpu', 'NO_RSEQ_REWRITES', 'fails'),
    _row('v2-migration-only', 'v2-cpu', 'MIGRATION_ONLY', 'fails'),
    _row('v2-preemption-aborts-not', 'v2-cpu', 'PREEMPTION_ABORTS_NOT', 'fails'),
    _row('v2-fence-aborts-not', 'v2-cpu', 'FENCE_ABORTS_NOT', 'fails'),
    # Mutations of the protocol.
    _row('no-fence', 'v2-cpu', 'CACHE_OK', 'fails', NO_FENCE=1),
    _row('fence-before-close', 'v2-cpu', 'CACHE_OK', 'fails', FENCE_BEFORE_CLOSE=1),
    _row('early-publish', 'v2-cpu', 'CACHE_OK', 'fails', EARLY_PUBLISH=1),
    _row('stale-index', 'v2-cpu', 'CACHE_OK', 'fails', STALE_INDEX=1),
    _row('remote-write', 'v2-cpu', 'CACHE_OK', 'fails', REMOTE_WRITE=1),
    _row('two-commits', 'v2-cpu', 'CACHE_OK', 'fails', TWO_COMMITS=1),
    _row('unlocked-first-use', 'v2-cpu', 'CACHE_OK', 'fails', UNLOCKED_FIRST_USE=1),
    _row('cid-fence-one-cpu', 'v2-cid', 'CACHE_OK', 'fails', FENCE_ONE_CPU=1),
    # Mutations that only weakly ordered memory shows.
    # (v2-weak-first-use and v2-weak-swap are the first two with the release in place.)
    _row('relaxed-publish', 'v2-cpu', 'CACHE_OK', 'fails', WEAK=1, BATCH=2, FIRST_USE=1,
         RELAXED_PUBLISH=1),
    _row('relaxed-publish-swap', 'v2-cpu', 'CACHE_OK', 'fails', WEAK=1, BATCH=2, SWAP=1,
         RELAXED_PUBLISH=1),
    _row('caller-no-barrier', 'v2-cpu', 'CACHE_OK', 'fails', WEAK=1, CALLER_NO_BARRIER=1),
    _row('target-no-barrier', 'v2-cpu', 'CACHE_OK', 'fails', WEAK=1, TARGET_NO_BARRIER=1),
    # mm_cid: an index wanders between CPUs, so what one CPU stored must reach the next.
    _row('cid-no-switch-barrier', 'v2-cid', 'CACHE_OK', 'fails', WEAK=1, NO_SWITCH_BARRIER=1),
    _row('cid-relaxed-publish', 'v2-cid', 'CACHE_OK', 'fails', WEAK=1, BATCH=2, FIRST_USE=1,
         RELAXED_PUBLISH=1),
    _row('cid-caller-no-barrier', 'v2-cid', 'CACHE_OK', 'fails', WEAK=1, CALLER_NO_BARRIER=1),
    _row('cid-target-no-barrier', 'v2-cid', 'CACHE_OK', 'fails', WEAK=1, TARGET_NO_BARRIER=1),
    # Larger configurations.
    _row('v2-mixed', 'v2-cpu', 'NO_CACHE', 'holds', 'full', BATCH=1),
    _row('v2-both-cpus-swap', 'v2-cpu', 'NO_CACHE', 'holds', 'full', STOP_BOTH=1, SWAP=1),
    _row('v2-three-objects', 'v2-cpu', 'NO_CACHE', 'holds', 'full', OBJECTS=3),
    _row('v2-cid-single', 'v2-cid', 'NO_CACHE', 'holds', 'full'),
    _row('v2-cid-swap', 'v2-cid', 'NO_CACHE', 'holds', 'full', SWAP=1, BATCH=2),
    _row('v2-weak-single', 'v2-cpu', 'NO_CACHE', 'holds', 'full', WEAK=1),
    _row('v2-cid-weak-first-use', 'v2-cid', 'NO_CACHE', 'holds', 'full', WEAK=1, BATCH=2,
         FIRST_USE=1),
    _row('legacy-weak', 'legacy', 'CACHE_OK', 'holds', 'full', WEAK=1, BATCH=2),
    _row('legacy-swap', 'legacy', 'CACHE_OK', 'holds', 'full', SWAP=1),
    _row('legacy-batch', 'legacy', 'CACHE_OK', 'holds', 'full', BATCH=2, FIRST_USE=1),
]

Result = collections.namedtuple('Result', 'found states depth violation seconds')


class SearchError(Exception):
    """The search did not come to an answer."""


def _run(command, cwd, ok=(0,)):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if done.returncode not in ok:
        raise SearchError('%s: status %d\n%s' % (' '.join(command), done.returncode,
                                                 done.stdout[-2000:]))
    return done.stdout


def _children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _build(row, directory, extra):
    for source in SOURCES:
        shutil.copy(source, directory)
    defines = ['-D%s=%s' % item for item in sorted(row.options.items())]
    _run(['spin', '-a'] + defines + ['slab.pml'], directory)
    _run(['gcc', *PAN_FLAGS, *extra, '-o', 'pan', 'pan.c'], directory)


def _number(pattern, text):
    match = re.search(pattern, text)
    if not match:
        raise SearchError('no match for %r in\n%s' % (pattern, text[-2000:]))
    return int(float(match.group(1)))


def _completeness_problem(row, output):
    """Why a search without counterexample proves less than it seems to, or None."""
    for trouble in ('max search depth too small', 'Search not completed', 'out of memory',
                    'reached -DMEMLIM', 'Bit statespace', 'hash-table full'):
        if trouble in output:
            return trouble
    if 'Full statespace search' not in output:
        return 'not a full search'
    # Nothing is proved about code that was never run: what the row is about must be reachable.
    landmarks = ['COMMITS', 'fences', 'drains', '= closed']
    if row.options['SWAP']:
        landmarks.append('swaps')
    unreached = '\n'.join(re.findall(r'^\t\w+\.pml:\d+, state \d+, "(.*)"$', output, re.M))
    source = ''
    for path in SOURCES:
        with open(path, encoding='utf-8') as opened:
            source += opened.read()
    for landmark in landmarks:
        if landmark not in source:
            return 'landmark %r is not in the model' % landmark
        if landmark in unreached:
            return 'never reached: a statement with %r' % landmark
    return None


def check(row):
    """Builds and runs the verifier of one row."""
    start = _children_seconds()
    with tempfile.TemporaryDirectory(prefix='slab_model_') as directory:
        # Counterexamples are found early: a fast compilation is worth more there.
        _build(row, directory, ['-O2' if row.expected == 'holds' else '-O0'])
        depth = MAX_DEPTH[row.tier] if row.expected == 'holds' else MAX_DEPTH_OF_COUNTEREXAMPLE
        output = _run(['./pan', '-w22', '-m%d' % depth], directory)
    errors = _number(r'errors: (\d+)', output)
    if errors == 0:
        problem = _completeness_problem(row, output)
        if problem:
            raise SearchError('%s: %s' % (row.name, problem))
    violation = re.search(r'pan:1: (.*) \(at depth', output)
    if errors and not (violation and violation.group(1).startswith('assertion violated')):
        raise SearchError('%s: an error that is no assertion\n%s' % (row.name, output[:1000]))
    return Result('fails' if errors else 'holds',
                  _number(r'([0-9.e+]+) states, stored', output),
                  _number(r'depth reached (\d+)', output),
                  violation.group(1) if violation else '',
                  round(_children_seconds() - start, 1))


def trail(row):
    """The shortest counterexample: breadth-first, then replayed with the model's own messages."""
    with tempfile.TemporaryDirectory(prefix='slab_model_') as directory:
        _build(row, directory, ['-O1', '-DBFS'])
        output = _run(['./pan', '-w22'], directory)
        if _number(r'errors: (\d+)', output) == 0:
            return None
        replay = _run(['./pan', '-r', '-S'], directory, ok=range(256))
    lines = [line.strip() for line in replay.splitlines()]
    return [line for line in lines if re.match(r'T\d|kernel|stopper|slab_of|.*assertion', line)]


COLUMNS = '%-25s %-7s %-22s %-8s %-7s %10s %8s %7s  %s'


class Table:
    def __init__(self, as_json):
        self.as_json = as_json
        self.rows = []

    def header(self):
        if not self.as_json:
            print(COLUMNS % ('name', 'scheme', 'kernel', 'expected', 'found', 'states', 'depth',
                             'cpu s', 'violated'), flush=True)

    def add(self, row, result):
        self.rows.append(dict(name=row.name, scheme=row.scheme, kernel=row.kernel,
                              rules=KERNELS[row.kernel], expected=row.expected,
                              **result._asdict()))
        if not self.as_json:
            print(COLUMNS % (row.name, row.scheme, row.kernel, row.expected, result.found,
                             result.states, result.depth, result.seconds,
                             result.violation.replace('assertion violated ', '')), flush=True)


def _case(row, table):
    def run(self):
        result = check(row)
        table.add(row, result)
        self.assertEqual(result.found, row.expected, row.name)

    name = 'test_' + row.name.replace('-', '_')
    return type('SlabModel', (unittest.TestCase,), {name: run})(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--list', action='store_true', help='the rows, without running them')
    parser.add_argument('--json', action='store_true', help='the table as JSON')
    parser.add_argument('--full', action='store_true', help='the larger configurations too')
    parser.add_argument('--only', action='append', metavar='NAME', help='this row')
    parser.add_argument('--trail', metavar='NAME', help='the shortest counterexample of this row')
    arguments = parser.parse_args()

    rows = {row.name: row for row in ROWS}
    wanted = [arguments.trail] if arguments.trail else arguments.only or [
        row.name for row in ROWS if arguments.full or row.tier == 'ci']
    for name in wanted:
        if name not in rows:
            parser.error('no row %s; --list shows them' % name)
    if arguments.list:
        for row in ROWS:
            options = ' '.join('%s=%s' % item for item in row.options.items()
                               if DEFAULTS.get(item[0]) != item[1]
                               and item[0] not in KERNELS[row.kernel])
            print('%-25s %-7s %-22s %-6s %-4s %s' % (*row[:4], row.tier, options))
        return 0
    for tool in ('spin', 'gcc'):
        if not shutil.which(tool):
            print('%s is missing: apt-get install %s' % (tool, tool), file=sys.stderr)
            return 1
    if arguments.trail:
        steps = trail(rows[arguments.trail])
        print('\n'.join(steps) if steps else '%s: no counterexample' % arguments.trail)
        return 0 if steps else 1
    table = Table(arguments.json)
    table.header()
    suite = unittest.TestSuite(_case(rows[name], table) for name in wanted)
    outcome = unittest.TextTestRunner(stream=sys.stderr, verbosity=0).run(suite)
    if arguments.json:
        print(json.dumps(table.rows, indent=2))
    return 0 if outcome.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main())
