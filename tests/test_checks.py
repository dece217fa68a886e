from __future__ import annotations

import math

import pytest

from sparse_dset.checks import check_list, check_number, check_size


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (1, {"at_least": 1, "whole": True}),
        (0.5, {"above": 0, "below": 1}),
        (0, {"at_least": 0, "at_most": 0}),
        (-7.5, {}),
    ],
)
def test_what_fits_passes(value, limits):
    check_number("x", value, **limits)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0, {"at_least": 1, "whole": True}, "x must be a whole number of at least 1, got 0"),
        (1.0, {"whole": True}, "x must be a whole number, got 1.0"),
        (True, {"at_least": 0}, "x must be a number of at least 0, got True"),
        ("1", {"above": 0}, "x must be a number above 0, got '1'"),
        (1, {"at_least": 0, "below": 1}, "x must be a number of at least 0 and below 1, got 1"),
        (2, {"above": 0, "at_most": 1}, "x must be a number above 0 and at most 1, got 2"),
        (2, {"at_most": 1}, "x must be a number of at most 1, got 2"),
        (math.nan, {}, "x must be a number, got nan"),
        (None, {}, "x must be a number, got None"),
    ],
)
def test_what_does_not_is_named_with_its_range(value, limits, message):
    with pytest.raises(ValueError) as error:
        check_number("x", value, **limits)
    assert str(error.value) == message


@pytest.mark.parametrize("size", [64, [64], [64, 64, 3], "64", [0, 64], [64.5, 64]])
def test_a_size_is_two_whole_numbers(size):
    check_size("size", (1, 2))
    with pytest.raises(ValueError, match=r"size.* must be "):
        check_size("size", size)


@pytest.mark.parametrize("values", [0.3, "dense", {1}])
def test_a_single_value_is_no_list(values):
    check_list("x", [values])
    with pytest.raises(ValueError, match=r"x must be a list: write x=\["):
        check_list("x", values)
