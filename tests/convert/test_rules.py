"""The engine of conversion tables."""

import pytest
import torch

from ditwright.convert.rules import rename
from ditwright.errors import UserError

RULES = [
    (r"a\.(\d+)\.w", r"b.\1.weight", None),
    (r"c", ("first", "second"), lambda t: t.chunk(2)),
    (r"d", "d", lambda t: 2 * t),
    (r"junk", None, None),
]


def test_keys_are_renamed_split_transformed_and_dropped():
    state = {"a.12.w": torch.ones(2), "c": torch.arange(4.0), "d": torch.ones(1), "junk": torch.zeros(1)}
    renamed, source = rename(state, RULES)
    assert source == {"b.12.weight": "a.12.w", "first": "c", "second": "c", "d": "d"}
    assert {name: v.tolist() for name, v in renamed.items()} == {
        "b.12.weight": [1, 1],
        "first": [0, 1],
        "second": [2, 3],
        "d": [2],
    }


@pytest.mark.parametrize("key", ["a.x.w", "xa.1.w", "a.1.ww", "D", ""])
def test_a_key_must_match_a_rule_whole(key):
    with pytest.raises(UserError, match=f"no rule knows the key '{key}'"):
        rename({key: torch.zeros(1)}, RULES)


def test_a_key_must_match_one_rule_alone():
    with pytest.raises(UserError, match="2 rules claim the key 'd'"):
        rename({"d": torch.zeros(1)}, [*RULES, (r"\w", "e", None)])


def test_a_transform_must_give_a_tensor_for_every_name():
    with pytest.raises(ValueError, match="zip"):
        rename({"c": torch.zeros(3)}, [(r"c", ("one", "two"), lambda t: t.chunk(3))])
