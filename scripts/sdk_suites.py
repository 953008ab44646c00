"""Runs the official packages' own tests of endpoints against a server of the demo models; prints what fails.

Called by sdk-suites.sh with the folder that has the sources of the packages.
"""

import collections
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# Of each package: tests of endpoints that percept has, the base URL's end, and what its tests are run with.
SUITES = {
    "openai": (
        [
            "chat/test_completions.py",
            "test_completions.py",
            "test_responses.py",
            "test_models.py",
            "audio/test_transcriptions.py",
            "audio/test_translations.py",
        ],
        "/v1",
        [],
    ),
    "anthropic": (["test_messages.py", "test_models.py"], "", ["-p", "tests._alias_httpx"]),
}
# Kept chat completions and responses, which percept has not: it keeps nothing.
KEPT = "not (retrieve or update or list or delete or cancel or compact)"
SPEECH = re.compile("whisper|transcribe")


def files(folder, package):
    """The files of a suite."""
    found = [folder / package / "tests/api_resources" / name for name in SUITES[package][0]]
    missing = [str(file) for file in found if not file.is_file()]
    if missing:
        sys.exit(f"the package has no {', '.join(missing)} any more")
    return found


def names(folder):
    """The chat models that the tests ask for."""
    asked = re.compile(r'(?:model|model_id)="([^"]+)"|retrieve\(\s*"([^"]+)"')
    text = "".join(file.read_text() for package in SUITES for file in files(folder, package))
    found = {a or b for a, b in asked.findall(text)}
    return sorted(name for name in found if not SPEECH.search(name))


def failures(folder, package, url):
    """How many tests passed, and the reasons of failed ones, by test without its variants."""
    _, end, more = SUITES[package]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        for file in files(folder, package):
            kept = ["-k", KEPT] if package == "openai" and file.name != "test_models.py" else []
            command = [
                sys.executable,
                "-m",
                "pytest",
                "--quiet",
                "-o",
                "addopts=",
                "-W",
                "ignore",
                *more,
                *kept,
            ]
            subprocess.run(
                [*command, f"--junit-xml={report}", file.relative_to(folder / package)],
                cwd=folder / package,
                env=os.environ | {"TEST_API_BASE_URL": url + end},
                stdout=subprocess.DEVNULL,
                check=False,
            )
            yield file.relative_to(folder / package / "tests/api_resources"), *read(report)


def read(report):
    passed, failed = 0, collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            name = case.get("name").split("[")[0]
            failed[name][" ".join(problem.get("message", "").split())] += 1
        elif case.find("skipped") is None:
            passed += 1
    return passed, failed


def main():
    folder = Path(sys.argv[1])
    aliases = [f"--alias={name}=percept-demo-vlm" for name in names(folder)]
    command = [os.environ["PERCEPT"], "serve", *aliases, "--port", "0", "--log", "error"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip().rsplit(" ", 1)[1].removesuffix("/v1")
        for package in SUITES:
            for file, passed, failed in failures(folder, package, url):
                count = sum(sum(reasons.values()) for reasons in failed.values())
                print(f"{package} {file}: {passed} passed, {count} failed", flush=True)
                for name, reasons in sorted(failed.items()):
                    for reason, times in reasons.items():
                        print(f"    {name}, {times} times: {reason[:300]}", flush=True)
    finally:
        server.terminate()
        server.wait(timeout=120)


if __name__ == "__main__":
    main()
