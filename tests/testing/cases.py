# SPDX-License-Identifier: Apache-2.0
"""unittest.main() that also writes Bazel's test.xml, one testcase for each test method.

Without it Bazel knows a Python test only as a whole. Use:
`if __name__ == "__main__": cases.main()`.
"""

import os
import sys
import time
import unittest
import xml.etree.ElementTree as ElementTree


class _Result(unittest.TextTestResult):
    """Remembers each case with its outcome."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cases = []
        self._started = 0.0
        self._bad = None
        self._skipped = None

    def startTest(self, test):
        super().startTest(test)
        self._started = time.monotonic()
        self._bad = None
        self._skipped = None

    def stopTest(self, test):
        self._add(test.id(), time.monotonic() - self._started, self._bad, self._skipped)
        super().stopTest(test)

    def _add(self, name, seconds, bad, skipped):
        classname, _, method = name.rpartition(".")
        case = ElementTree.Element("testcase", classname=classname, name=method,
                                   time=f"{seconds:.3f}")
        if bad is not None:
            ElementTree.SubElement(case, "failure", message=bad)
        elif skipped is not None:
            ElementTree.SubElement(case, "skipped", message=skipped)
        self.cases.append(case)

    def _record(self, test, error):
        text = "".join(str(error[1]).splitlines()[:1]) or error[0].__name__
        if isinstance(test, unittest.TestCase):
            self._bad = text
        else:
            # setUpClass or an import that failed: no test method will be seen.
            self._add(str(test), 0.0, text, None)

    def addError(self, test, err):
        super().addError(test, err)
        self._record(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._record(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._record(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if isinstance(test, unittest.TestCase):
            self._skipped = reason
        else:
            self._add(str(test), 0.0, None, reason)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._bad = "passed, though marked as expected to fail"


def main():
    """Runs the cases of the calling program; exits with 1 on a failure, or if there is no case."""
    runner = unittest.TextTestRunner(resultclass=_Result, verbosity=2)
    result = unittest.main(module="__main__", testRunner=runner, exit=False).result
    path = os.environ.get("XML_OUTPUT_FILE")
    if path:
        suite = ElementTree.Element("testsuite", name=os.path.basename(sys.argv[0]),
                                    tests=str(len(result.cases)))
        suite.extend(result.cases)
        ElementTree.ElementTree(suite).write(path)
    sys.exit(0 if result.wasSuccessful() and result.cases else 1)
