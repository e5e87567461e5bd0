# SPDX-License-Identifier: Apache-2.0
"""Installs Debian packages that a benchmark needs, where that is possible."""

import os
import shutil
import subprocess
import sys


def is_installed(package):
    done = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], capture_output=True,
                          text=True, check=False)
    return done.returncode == 0 and done.stdout.endswith("ok installed")


def ensure(packages):
    """Installs what is missing. Returns None, or the reason why something is still missing."""
    if shutil.which("dpkg-query") is None:
        return "not a Debian system; needs the equivalent of: %s" % " ".join(packages)
    missing = [p for p in packages if not is_installed(p)]
    if not missing:
        return None
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        return "missing packages; as root: %s" % " ".join(command)
    print("installing %s" % " ".join(missing), file=sys.stderr)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    done = subprocess.run(command[:1] + ["-o", "DPkg::Lock::Timeout=120"] + command[1:], env=env,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return "%s failed: %s" % (" ".join(command), done.stderr.strip()[-300:])
    return None
