"""The pages in docs/ name tests and settings that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
FAULTS = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")


def test_each_of_the_thirty_cases_has_a_test_or_a_reason() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    tests = set(re.findall(r"^def (test_fault_\w+)\(", source, re.MULTILINE))
    rows = re.findall(r"^\| (\d+) (.*)$", FAULTS, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    named = set()
    for number, row in rows:
        found = re.findall(r"`(test_fault\w+)`", row)
        assert found or "does not apply: " in row, number
        assert set(found) <= tests, number
        assert all(int(number) in [int(n) for n in re.findall(r"(?<=_)\d\d(?=_)", name)] for name in found), number
        named |= set(found)
    assert named == tests
