#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Programs that read, compute, write and end: the same bytes and status with the allocator."""

import glob
import random
import xml.etree.ElementTree

import program

SQL = """
CREATE TABLE t(id INTEGER PRIMARY KEY, word TEXT, n INTEGER);
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 1000000)
  INSERT INTO t SELECT i, printf('word%d', (i * 7919) % 100003), i * 31 % 1009 FROM c;
CREATE INDEX by_word ON t(word);
SELECT count(*), sum(n), count(DISTINCT word) FROM t;
SELECT word, count(*), group_concat(id) FROM t WHERE n < 3 GROUP BY word ORDER BY word LIMIT 200;
UPDATE t SET word = upper(word) WHERE id % 10 = 0;
SELECT min(word), max(word), total(length(word)) FROM t;
PRAGMA integrity_check;
"""

PERL = r"""
my (%count, @lists);
open(my $in, '<', '../words') or die;
while (<$in>) { chomp; for (split / /) { $count{$_}++; push @{$lists[length]}, $_; } }
for (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) { print "$_ $count{$_}\n"; }
my $text = join ',', map { scalar @{$_ || []} } @lists;
$text =~ s/(\d+)/<$1>/g; print "$text\n"; print length(join '', keys %count), "\n";
"""

PHP = r"""
$a = []; mt_srand(1);
for ($i = 0; $i < 60000; $i++)
  $a["k" . mt_rand() % 50021][] = md5((string)$i) . str_repeat("x", $i % 90);
ksort($a); $n = 0;
foreach ($a as $k => $v) { sort($v); $n += strlen(implode(",", $v)); }
echo $n, " ", md5(json_encode($a)), " ", preg_match_all('/a(b+|c)d/', json_encode($a), $m), "\n";
$names = array_map('strtolower', get_loaded_extensions());
echo implode(" ", array_filter($names, 'ctype_alpha')), "\n";
"""

AWK = r"""
{ for (i = 1; i <= NF; ++i) { count[$i]++; where[$i] = where[$i] " " NR % 97 } }
END { n = asorti(count, order); for (i = 1; i <= n; ++i) print order[i], count[order[i]],
      length(where[order[i]]), toupper(substr(order[i], 2)) }
"""


class BatchTest(program.ProgramTest):

    def write_words(self, lines=40000):
        generator = random.Random(1)
        with open(self.path("words"), "w", encoding="ascii") as words:
            for _ in range(lines):
                words.write(" ".join(format(int(generator.paretovariate(0.3)) % 50021, "x")
                                     for _ in range(8)) + "\n")

    def test_git(self):
        program.require("git", "git")
        self.write_words(4000)
        with open(self.path("words"), encoding="ascii") as words:
            lines = words.readlines()
        stream = []
        for i in range(300):
            text = "".join(lines[i * 10:i * 10 + 300])
            stream.append(f"commit refs/heads/main\ncommitter A <a@b> {1600000000 + i} +0000\n"
                          f"data 8\ncommit {i % 10}\nM 100644 inline file{i % 40}\n"
                          f"data {len(text)}\n{text}\n")
        with open(self.path("import"), "w", encoding="ascii") as file:
            file.writelines(stream)
        status, _, err = self.run_command(
            "git init -q -b main origin && git -C origin fast-import --quiet <import", False)
        self.assertEqual(status, 0, err)
        self.compare(["git clone -q --no-local ../origin copy", "git -C copy fsck --full --strict",
                      "git -C copy log -p --stat", "git -C copy repack -q -a -d -f",
                      "git -C copy rev-list --objects --all", "git -C copy blame file7"])

    def test_gxx(self):
        program.require("g++", "g++")
        with open(self.path("large.cc"), "w", encoding="ascii") as source:
            source.write("#include <map>\n#include <string>\n#include <regex>\n#include <variant>\n"
                         "template <int N> struct T { std::map<std::string, std::variant<int, "
                         "std::string>> m; int f() { m[std::to_string(N)] = N; "
                         "return static_cast<int>(m.size()) + T<N - 1>().f(); } };\n"
                         "template <> struct T<0> { int f() { return 0; } };\n")
            for i in range(25):
                source.write(f"struct S{i} {{ int a[{i + 1}]; }};\nint f{i}() {{ "
                             f"std::map<int, S{i}> m; m[{i}] = S{i}(); return T<{i}>().f() + "
                             f"static_cast<int>(m.size()); }}\n")
            source.write("bool g(const std::string& s) { return std::regex_match(s, "
                         "std::regex(\"a+b\")); }\n")
        self.compare([["g++", "-std=c++17", "-O1", "-c", "../large.cc", "-o", "large.o"]],
                     files=["large.o"])

    def test_sqlite3(self):
        program.require("sqlite3", "sqlite3")
        with open(self.path("script.sql"), "w", encoding="ascii") as script:
            script.write(SQL)
        self.compare(["sqlite3 base.db <../script.sql"])

    def test_perl(self):
        program.require("perl", "perl")
        self.write_words()
        self.compare([["perl", "-e", PERL]])

    def test_php(self):
        # Opens its extensions with RTLD_DEEPBIND.
        program.require("php-cli", "php")
        self.compare([["php", "-r", PHP], ["env", "USE_ZEND_ALLOC=0", "php", "-r", PHP]])

    def test_gawk(self):
        program.require("gawk", "gawk")
        self.write_words()
        self.compare([["gawk", AWK, "../words"]])

    def test_sort(self):
        program.require("coreutils", "sort")
        self.write_words(300000)
        self.compare(["sort --parallel=2 -S 8M ../words", "sort --parallel=2 -u -k3,3 ../words"])

    def test_xz(self):
        program.require("xz-utils", "xz")
        self.write_words(100000)
        self.compare(["xz -T2 -3 --block-size=1MiB -k -c ../words >words.xz",
                      "xz -T2 -d -c words.xz"], files=["words.xz"])

    def test_python3(self):
        """Python's own tests, each with the same outcome, whatever that is here."""
        if not glob.glob("/usr/lib/python3*/test/test_dict.py"):
            status, out, _ = self.run_command(
                "/usr/bin/python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'", False)
            self.assertEqual(status, 0)
            version = out.decode().strip()
            program.require(f"libpython{version}-testsuite",
                            f"/usr/lib/python{version}/test/test_dict.py")
        outcomes = []
        for preload in (False, True):
            report = self.path(f"report{int(preload)}.xml")
            # Python's own arenas would hide most allocations from malloc.
            status, out, err = self.run_command(
                f"PYTHONMALLOC=malloc /usr/bin/python3 -m test -j2 --junit-xml {report} "
                "test_json test_dict test_threading test_subprocess", preload, timeout=200)
            outcome = {}
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                failed = {"error", "failure"} & {child.tag for child in case}
                outcome[case.get("name")] = (case.get("result"), bool(failed))
            self.assertGreater(len(outcome), 500, out[-2000:] + err[-2000:])
            outcomes.append((status, outcome))
        (status, without), (preload_status, with_it) = outcomes
        self.assertEqual({}, {name: (without.get(name), with_it.get(name))
                              for name in without.keys() | with_it.keys()
                              if without.get(name) != with_it.get(name)})
        self.assertEqual(status, preload_status)
        self.check_statistics()


if __name__ == "__main__":
    program.main()
