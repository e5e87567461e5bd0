# SPDX-License-Identifier: Apache-2.0
"""Deterministic inputs of the programs suite. `scale` is 1 for a full run, less for a quick one."""

import json
import random

WORDS = ["alpha", "bravo", "cache", "delta", "epoll", "fence", "gamma", "heap", "index", "joule",
         "kernel", "latch", "mutex", "node", "order", "page", "queue", "ring", "slab", "token"]


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def some_words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def records(count):
    rng = random.Random(1)
    return [
        {"id": i, "name": some_words(rng, 2), "group": "g%d" % rng.randrange(500),
         "tags": [rng.choice(WORDS) for _ in range(rng.randrange(6))],
         "value": rng.randrange(10**6), "text": some_words(rng, rng.randrange(3, 20))}
        for i in range(count)
    ]


def xslt(directory, scale):
    rows = [
        '<item id="%d" group="%s"><name>%s</name><value>%d</value><text>%s</text>%s</item>'
        % (r["id"], r["group"], r["name"], r["value"], r["text"],
           "".join("<tag>%s</tag>" % t for t in r["tags"]))
        for r in records(int(120000 * scale))
    ]
    data = write(directory + "/data.xml", "<items>%s</items>\n" % "\n".join(rows))
    sheet = write(directory + "/sheet.xsl", """<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:key name="by-group" match="item" use="@group"/>
<xsl:template match="/items"><report>
<xsl:for-each select="item[generate-id() = generate-id(key('by-group', @group)[1])]">
<xsl:sort select="@group"/>
<group name="{@group}" total="{sum(key('by-group', @group)/value)}">
<xsl:for-each select="key('by-group', @group)"><xsl:sort select="name"/>
<entry><xsl:value-of select="concat(name, ': ', translate(text, 'abc', 'xyz'))"/>
<xsl:apply-templates select="tag"/></entry></xsl:for-each></group></xsl:for-each>
</report></xsl:template>
<xsl:template match="tag"><t><xsl:value-of select="."/></t></xsl:template>
</xsl:stylesheet>
""")
    return [sheet, data]


def json_lines(directory, scale):
    return write(directory + "/data.json", json.dumps(records(int(60000 * scale))))


PYTHON = """
import json, random, sys
data = json.load(open(sys.argv[1]))
random.seed(2)
for turn in range(2):
    data = json.loads(json.dumps(data))
    index = {}
    for r in data:
        for t in r["tags"]:
            index.setdefault((t, r["group"]), []).append(r["name"] + str(r["value"]))
    out = sorted((len(v), k, min(v)) for k, v in index.items())
    words = [w for r in data for w in r["text"].split()]
    random.shuffle(words)
    words.sort()
    objects = [{"a": i, "b": [i, i + 1], "c": (i, str(i))} for i in range(len(data) * 2)]
    del objects[::3]
print(len(out), out[:3], len(words))
"""

LUA = """
local turns = tonumber(arg[1])
local seed = 7
local function rnd(n) seed = (seed * 1103515245 + 12345) % 2147483648; return seed % n end
local sum = 0
for turn = 1, turns do
  local all = {}
  for i = 1, 40000 do
    all[i] = { key = "key" .. rnd(100000), value = i, list = { i, i + 1, tostring(i) } }
  end
  table.sort(all, function(a, b)
    if a.key == b.key then return a.value < b.value end
    return a.key < b.key
  end)
  local parts = {}
  for i, e in ipairs(all) do parts[#parts + 1] = e.key .. "=" .. e.list[3]:rep(2) end
  local text = table.concat(parts, ";")
  for word in text:gmatch("key%d+") do sum = sum + #word end
end
print(sum)
"""

PERL = r"""
my $turns = shift; my $seed = 7; my $sum = 0;
sub rnd { $seed = ($seed * 1103515245 + 12345) % 2147483648; return $seed % $_[0]; }
for my $turn (1 .. $turns) {
  my (%h, @list);
  for my $i (1 .. 60000) {
    my $key = "key" . rnd(20000);
    push @{ $h{$key} }, { value => $i, name => "name $i of $key" };
  }
  for my $key (sort keys %h) {
    my @names = map { my $n = $_->{name}; $n =~ s/(\d+)/<$1>/g; $n } @{ $h{$key} };
    push @list, join(",", sort @names);
  }
  my $text = join("\n", @list);
  $sum += () = $text =~ /<(\d)\d*>/g;
  $sum += length $_ for split /,/, $text;
}
print "$sum\n";
"""

RUBY = """
turns = ARGV[0].to_i
srand(7)
sum = 0
turns.times do
  all = (1..60000).map { |i| { key: "key#{rand(20000)}", value: i, list: [i, i.to_s * 3] } }
  groups = all.group_by { |e| e[:key] }
  text = groups.sort.map { |k, v| k + v.map { |e| e[:list][1] }.join(",") }.join(";")
  sum += text.scan(/key[0-9]+/).map(&:size).sum
end
puts sum
"""


def sql(directory, scale):
    """A database in memory: rows, indexes, joins, text functions."""
    rng = random.Random(3)
    count = int(180000 * scale)
    lines = ["CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, grp INT, body TEXT);",
             "CREATE TABLE u(grp INT, label TEXT);", "BEGIN;"]
    for i in range(count):
        lines.append("INSERT INTO t VALUES(%d,'%s',%d,'%s');" %
                     (i, some_words(rng, 2), rng.randrange(1000), some_words(rng, 12)))
    lines += ["INSERT INTO u VALUES(%d,'label %d');" % (i, i) for i in range(1000)]
    lines += ["COMMIT;", "CREATE INDEX i1 ON t(name, grp);", "CREATE INDEX i2 ON t(grp);"]
    for i in range(4):
        lines.append("SELECT label, count(*), group_concat(upper(substr(body, %d, 9))) FROM t "
                     "JOIN u USING(grp) GROUP BY label ORDER BY 2 DESC, 1 LIMIT 5;" % (i + 1))
        lines.append("UPDATE t SET body = body || name WHERE grp %% 4 = %d;" % i)
    return write(directory + "/script.sql", "\n".join(lines) + "\n")


def cpp(directory, scale):
    """A translation unit with much to instantiate and to optimise."""
    lines = ["#include <algorithm>", "#include <map>", "#include <string>", "#include <vector>"]
    count = max(3, int(20 * scale))
    for i in range(count):
        lines.append("""
struct T%d {
  int key;
  std::string name;
  bool operator<(const T%d& o) const { return key < o.key; }
};
int f%d(std::vector<T%d>& v) {
  std::map<int, std::vector<T%d>> groups;
  std::sort(v.begin(), v.end());
  for (auto& t : v) groups[t.key %% %d].push_back(t);
  int sum = 0;
  for (auto& [key, g] : groups) for (auto& t : g) sum += key * int(t.name.size()) + %d;
  return sum;
}""" % (i, i, i, i, i, i + 2, i))
    return write(directory + "/unit.cc", "\n".join(lines) + "\n")


def smt(directory, scale):
    """Pigeonholes: there is no solution, so the solver must search all."""
    holes = 9 if scale >= 1 else 8
    lines = ["(set-option :smt.random_seed 1)", "(set-option :sat.random_seed 1)"]
    for p in range(holes + 1):
        lines += ["(declare-const p%d_%d Bool)" % (p, h) for h in range(holes)]
        lines.append("(assert (or %s))" % " ".join("p%d_%d" % (p, h) for h in range(holes)))
    for h in range(holes):
        for p in range(holes + 1):
            lines += ["(assert (not (and p%d_%d p%d_%d)))" % (p, h, q, h) for q in range(p)]
    lines.append("(check-sat)")
    return write(directory + "/problem.smt2", "\n".join(lines) + "\n")


def fast_import(scale):
    """A git fast-import stream: files edited line by line over many commits."""
    rng = random.Random(4)
    files = {"dir%d/file%d.txt" % (i % 7, i): [some_words(rng, 8) for _ in range(120)]
             for i in range(40)}
    out = []
    for commit in range(int(6000 * scale) + 5):
        out.append("commit refs/heads/main\ncommitter A <a@example.org> %d +0000\n"
                   "data 10\ncommit %03d\n" % (1000000000 + commit * 60, commit % 1000))
        for name in files if commit == 0 else rng.sample(sorted(files), 4):
            lines = files[name]
            for _ in range(6):
                lines[rng.randrange(len(lines))] = some_words(rng, 8)
            text = "\n".join(lines) + "\n"
            out.append("M 100644 inline %s\ndata %d\n%s\n" % (name, len(text), text))
    return "".join(out) + "done\n"
