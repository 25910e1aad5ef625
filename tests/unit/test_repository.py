"""What stays true of the repository itself."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_makefile_has_at_most_twelve_verbs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert verbs == set(phony.split())
    assert len(verbs) <= 12


def test_make_help_lists_every_verb() -> None:
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[0] for line in listed.splitlines()] == phony.split()


def test_the_lock_pins_every_package_by_hash_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert not re.search(r"^\s*--(?!hash=)", lock, re.MULTILINE)
    packages = re.findall(r"^(\S+)==\S+ \\\n    --hash=", lock, re.MULTILINE)
    assert len(packages) == len(re.findall(r"^[A-Za-z0-9]", lock, re.MULTILINE))
    assert {"hatchling", "relayd"} & set(packages) == {"hatchling"}
