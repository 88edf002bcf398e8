"""The canonical text of plain data and the key made of it: fixed once, or every store would be lost."""

import json

import pytest

from lossatlas.settings import canonical, content_key


def test_the_canonical_text_is_sorted_and_without_spaces() -> None:
    content = {"b": [1, 2.5, "é"], "a": {"d": None, "c": True}}
    assert canonical(content) == '{"a":{"c":true,"d":null},"b":[1,2.5,"\\u00e9"]}'
    assert canonical(dict(reversed(content.items()))) == canonical(content)
    assert json.loads(canonical(content)) == content


def test_numbers_are_told_apart_exactly() -> None:
    assert canonical(0.1 + 0.2) == "0.30000000000000004"
    assert canonical(1) != canonical(1.0)
    assert canonical(5e-4) == "0.0005"
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical({"x": number})


def test_the_key_is_the_head_of_sha256() -> None:
    # printf '{"a":1}' | sha256sum
    assert content_key({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad808"
