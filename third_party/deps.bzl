# SPDX-License-Identifier: Apache-2.0
"""Third-party code: what Debian 12's packages installed, given Bazel labels.

Nothing is downloaded. A missing package stops the build with the apt-get line that cures it.
"""

def _pkg_config_targets(ctx):
    """One cc_library per pkg-config module, holding its -l flags; headers are in /usr/include."""
    packages = {}
    for label, module in ctx.attr.pkg_config.items():
        package, _, name = label.partition(":")
        result = ctx.execute(["pkg-config", "--libs-only-l", module])
        if result.return_code != 0:
            fail("pkg-config %s: %s (apt-get install pkg-config %s)" %
                 (module, result.stderr, ctx.attr.debian_package))
        flags = [flag.strip() for flag in result.stdout.split(" ") if flag.strip()]
        packages.setdefault(package, []).append(
            "cc_library(name = %r, linkopts = %r)\n" % (name, flags),
        )
    for package, targets in packages.items():
        ctx.file(
            package + "/BUILD",
            'package(default_visibility = ["//visibility:public"])\n' + "".join(targets),
        )

def _debian_package_impl(ctx):
    if not ctx.path(ctx.attr.marker).exists:
        fail("%s is missing: apt-get install %s" % (ctx.attr.marker, ctx.attr.debian_package))
    _pkg_config_targets(ctx)
    for path in ctx.attr.symlinks:
        ctx.symlink(path, path.split("/")[-1])
    if ctx.attr.build:
        ctx.symlink(ctx.attr.build, "BUILD")

_debian_package = repository_rule(
    implementation = _debian_package_impl,
    attrs = {
        "build": attr.label(allow_single_file = True),
        "debian_package": attr.string(mandatory = True),
        "marker": attr.string(mandatory = True),
        "pkg_config": attr.string_dict(),
        "symlinks": attr.string_list(),
    },
    local = True,
)

# Label -> pkg-config module. Add a line when a tool or test needs one more part of Abseil.
_ABSEIL = {
    "absl/base:config": "absl_config",
    "absl/base:core_headers": "absl_core_headers",
    "absl/container:btree": "absl_btree",
    "absl/container:flat_hash_map": "absl_flat_hash_map",
    "absl/container:flat_hash_set": "absl_flat_hash_set",
    "absl/flags:flag": "absl_flags",
    "absl/flags:parse": "absl_flags_parse",
    "absl/flags:reflection": "absl_flags_reflection",
    "absl/flags:usage": "absl_flags_usage",
    "absl/numeric:bits": "absl_bits",
    "absl/random:random": "absl_random_random",
    "absl/status:status": "absl_status",
    "absl/status:statusor": "absl_statusor",
    "absl/strings:str_format": "absl_str_format",
    "absl/strings:strings": "absl_strings",
    "absl/synchronization:synchronization": "absl_synchronization",
    "absl/time:time": "absl_time",
    "absl/types:span": "absl_span",
}

def debian_packages():
    """Declares the external repositories."""
    _debian_package(
        name = "com_google_absl",
        debian_package = "libabsl-dev",
        marker = "/usr/include/absl/base/config.h",
        pkg_config = _ABSEIL,
    )
    _debian_package(
        name = "com_google_googletest",
        build = "//third_party:googletest.BUILD",
        debian_package = "googletest",
        marker = "/usr/src/googletest/googletest/src/gtest.cc",
        symlinks = [
            "/usr/src/googletest/googlemock",
            "/usr/src/googletest/googletest",
        ],
    )
    _debian_package(
        name = "com_github_google_benchmark",
        build = "//third_party:benchmark.BUILD",
        debian_package = "libbenchmark-dev",
        marker = "/usr/include/benchmark/benchmark.h",
    )

def _bazel_stub_impl(ctx):
    ctx.file("BUILD", """filegroup(
    name = "coverage_report_generator",
    visibility = ["//visibility:public"],
)
""")
    for package, rules in ctx.attr.rules.items():
        ctx.file(package + "/BUILD")
        ctx.file(
            package + "/defs.bzl",
            "".join(["{0} = native.{0}\n".format(rule) for rule in rules]),
        )

_bazel_stub = repository_rule(
    implementation = _bazel_stub_impl,
    attrs = {"rules": attr.string_list_dict()},
)

def bazel_stubs():
    """Empty stand-ins for three repositories that Bazel 4.2.3 would fetch before its first action."""
    _bazel_stub(name = "remote_coverage_tools")
    _bazel_stub(
        name = "rules_cc",
        rules = {"cc": ["cc_binary", "cc_import", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"]},
    )
    _bazel_stub(
        name = "rules_java",
        rules = {"java": ["java_import", "java_runtime", "java_toolchain"]},
    )
