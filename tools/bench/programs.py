# SPDX-License-Identifier: Apache-2.0
"""Whole programs of Debian under each allocator: CPU time, wall time, faults, largest RSS.

Every input is generated; every program does the same work in each run, and its output must be the
same under all allocators.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
from typing import Callable, Optional

import inputs
import install
import run
import servers

TIMEOUT_SECONDS = 300


@dataclasses.dataclass
class Program:
    name: str
    packages: tuple
    command: Callable  # (directory, scale) -> argv; writes the inputs
    load: Optional[Callable] = None  # a server's client: (socket path, scale)
    env: tuple = ()


def script(text, suffix, interpreter, *arguments):
    def command(directory, scale):
        path = inputs.write(directory + "/script" + suffix, text)
        return [interpreter, path] + [a(scale) if callable(a) else a for a in arguments]

    return command


def turns(full):
    return lambda scale: str(max(1, int(full * scale)))


def xsltproc(directory, scale):
    return ["xsltproc", *inputs.xslt(directory, scale)]


def python(directory, scale):
    data = inputs.json_lines(directory, scale)
    return ["/usr/bin/python3", "-S", inputs.write(directory + "/script.py", inputs.PYTHON), data]


def jq(directory, scale):
    data = inputs.json_lines(directory, scale)
    return ["jq", "group_by(.group) | map({group: .[0].group, total: (map(.value) | add), names: "
            "(map(.name + (.id | tostring)) | sort | join(\",\")), tags: (map(.tags[]) | unique)})",
            data]


def git_log(directory, scale):
    repository = directory + "/repository"
    env = dict(os.environ, **dict(GIT_ENVIRONMENT))
    subprocess.run(["git", "init", "-q", "--bare", repository], check=True, env=env)
    subprocess.run(["git", "-C", repository, "fast-import", "--quiet", "--done"], check=True,
                   env=env, input=inputs.fast_import(scale).encode())
    return ["git", "-C", repository, "--no-pager", "log", "-p", "--no-color", "refs/heads/main"]


def sqlite(directory, scale):
    return ["sqlite3", ":memory:", ".read " + inputs.sql(directory, scale)]


def compiler(program):
    # -S to stdout: an output file /dev/null could be unlinked by root's assembler.
    return lambda directory, scale: [program, "-std=c++17", "-O2", "-S", "-o", "-",
                                     inputs.cpp(directory, scale)]


def z3(directory, scale):
    return ["z3", inputs.smt(directory, scale)]


def redis(directory, _scale):
    return ["redis-server", "--port", "0", "--unixsocket", directory + "/socket", "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--dir", directory, "--logfile",
            directory + "/log"]


def nginx(directory, _scale):
    os.makedirs(directory + "/root", exist_ok=True)
    inputs.write(directory + "/root/page.html", "<p>page</p>\n" * 150 + "<!--end-->\n")
    config = inputs.write(directory + "/nginx.conf", """
daemon off; master_process off; pid %(d)s/pid; error_log %(d)s/log;
events { worker_connections 64; }
http {
  access_log off; keepalive_requests 100000;
  client_body_temp_path %(d)s/t1; proxy_temp_path %(d)s/t2; fastcgi_temp_path %(d)s/t3;
  uwsgi_temp_path %(d)s/t4; scgi_temp_path %(d)s/t5;
  server { listen unix:%(d)s/socket; root %(d)s/root; }
}
""" % {"d": directory})
    return ["/usr/sbin/nginx", "-c", config, "-e", directory + "/log"]


GIT_ENVIRONMENT = (("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"))

PROGRAMS = [
    Program("xsltproc", ("xsltproc",), xsltproc),
    Program("python", ("python3",), python,
            env=(("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "0"))),
    Program("lua", ("lua5.4",), script(inputs.LUA, ".lua", "lua5.4", turns(15))),
    Program("perl", ("perl",), script(inputs.PERL, ".pl", "/usr/bin/perl", turns(9)),
            env=(("PERL_HASH_SEED", "0"),)),
    Program("jq", ("jq",), jq),
    Program("git", ("git",), git_log, env=GIT_ENVIRONMENT),
    Program("redis", ("redis-server",), redis, load=servers.redis_load),
    Program("sqlite", ("sqlite3",), sqlite),
    Program("g++", ("g++",), compiler("/usr/bin/g++")),
    Program("clang++", ("clang-14",), compiler("/usr/bin/clang++-14")),
    Program("ruby", ("ruby",), script(inputs.RUBY, ".rb", "/usr/bin/ruby", turns(9))),
    Program("z3", ("z3",), z3),
    Program("nginx", ("nginx-light",), nginx, load=servers.http_load),
]


def preload_of(allocator):
    # glibc too is preloaded: some programs (Debian's redis) are linked with a peer, and would
    # otherwise run on that one.
    return allocator.preload or "libc.so.6"


def read_report(path, row):
    with open(path, encoding="ascii") as file:
        entries = [json.loads(line) for line in file]
    if not entries:
        raise run.RunError("no report from exec_counted")
    return [(row, e["metric"], e["unit"], float(e["value"])) for e in entries]


def run_program(argv, env, output):
    with open(output, "wb") as file:
        try:
            done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=file,
                                  stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise run.RunError("no end after %d s" % TIMEOUT_SECONDS) from error
    if done.returncode != 0:
        raise run.RunError("exit status %d: %s" %
                           (done.returncode, done.stderr.decode(errors="replace")[-300:]))


def run_server(argv, env, load, socket_path, scale):
    if os.path.exists(socket_path):
        os.unlink(socket_path)
    server = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE)
    try:
        load(socket_path, scale)
    except (servers.ClientError, OSError) as error:
        raise run.RunError(str(error)) from error
    finally:
        server.terminate()  # passed on by exec_counted, which then reports
        try:
            _, errors = server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
            raise run.RunError("the server did not end on SIGTERM") from None
    if server.returncode != 0:
        raise run.RunError("exit status %d: %s" %
                           (server.returncode, errors.decode(errors="replace")[-300:]))


def job(program, bin_dir, directory, scale):
    state = {"argv": None, "digest": None}

    def measure(allocator):
        if state["argv"] is None:  # inputs are written when the row's turn comes
            os.makedirs(directory, exist_ok=True)
            state["argv"] = program.command(directory, scale)
        report, output = directory + "/report", directory + "/output"
        argv = [os.path.join(bin_dir, "exec_counted"), report, preload_of(allocator),
                *state["argv"]]
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        env.update(program.env, LC_ALL="C.UTF-8")
        if program.load is not None:
            run_server(argv, env, program.load, directory + "/socket", scale)
            return read_report(report, program.name)
        run_program(argv, env, output)
        with open(output, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        if state["digest"] not in (None, digest):
            raise run.RunError("the output differs from that of the first run")
        state["digest"] = digest
        return read_report(report, program.name)

    return run.Job("programs", program.name, measure)


def jobs(bin_dir, quick, pattern, work_dir, install_missing=True):
    """(jobs, notes); the notes name the programs that could not be had."""
    scale = 0.1 if quick else 1.0
    out, notes = [], []
    for program in PROGRAMS:
        if pattern is not None and not pattern.fullmatch(program.name):
            continue
        reason = install.ensure(program.packages) if install_missing else None
        if reason is not None:
            notes.append("%s left out: %s" % (program.name, reason))
            continue
        out.append(job(program, bin_dir, os.path.join(work_dir, program.name), scale))
    return out, notes
