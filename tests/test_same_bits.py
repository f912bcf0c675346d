"""benchmarks/same_bits.py says where two results differ first."""

import re
from typing import Any

import pytest
import torch

from benchmarks.same_bits import difference, printed_table, size


def value() -> dict[str, Any]:
    return {"weights": [{"w": torch.arange(6.0).view(2, 3)}], "loss": 1.5, "text": b"to be", "rows": ["a", "b"]}


def test_equal_values_do_not_differ() -> None:
    assert difference(value(), value()) == ""


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        (
            {"weights": [{"w": torch.arange(6.0).view(2, 3) + 1e-6}]},
            r"/weights/0/w by .* at most",
        ),
        ({"weights": [{"w": torch.arange(6.0)}]}, r"/weights/0/w .*\(2, 3\) and .*\(6,\)"),
        ({"weights": [{"w": torch.arange(6.0).view(2, 3).double()}]}, "/weights/0/w torch.float32"),
        ({"weights": [{"v": torch.arange(6.0).view(2, 3)}]}, r"/weights/0 only one has \['v', 'w'\]"),
        ({"loss": 1.5000001}, "/loss 1.5 and 1.5000001"),
        ({"loss": None}, "/loss float and NoneType"),
        ({"text": b"to bed"}, "/text at byte 5 of 5 and 6"),
        ({"text": b"so be"}, "/text at byte 0 of 5 and 5"),
        ({"rows": ["a", "c"]}, "/rows/1 'b' and 'c'"),
        ({"rows": ["a"]}, "/rows 2 and 1 entries"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_difference_is_named_with_its_place(changed: dict[str, Any], where: str) -> None:
    assert re.match(where, difference(value(), value() | changed))


def test_the_seconds_of_a_table_do_not_count() -> None:
    output = "a note\niter 0 | train 4.2 | val 4.1 | lr 1.00e-04 | 2s\niter 9 | train 4.0 | val 4.0 | last.ckpt\n"
    assert printed_table(output) == ["iter 0 | train 4.2 | val 4.1 | lr 1.00e-04", output.splitlines()[2]]


def test_tensors_numbers_and_rows_are_counted() -> None:
    assert size(value()) == 5
