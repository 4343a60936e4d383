"""Splits depend on the group alone and leave no part empty."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_jax.data import splits
from fer_jax.errors import InputError


def test_grouped_is_80_10_10_and_the_same_for_the_same_people():
    keys = [splits.group_key("ck", subject=f"S{i}", clip="", record="r") for i in range(5000)]
    counts = collections.Counter(splits.grouped(key) for key in keys)
    assert counts["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    assert counts["validation"] / 5000 == pytest.approx(0.1, abs=0.02)
    other_set = splits.group_key("ck", subject="S7", clip="another clip", record="another")
    assert splits.grouped(other_set) == splits.grouped(keys[7])


def test_the_group_is_the_subject_else_the_clip_else_the_image():
    def key(subject: str, clip: str) -> str:
        return splits.group_key("n", subject=subject, clip=clip, record="r")

    assert len({key("a", "b"), key("", "b"), key("", ""), key("b", "")}) == 4
    assert key("a", "b") == key("a", "c")


@given(st.sets(st.text(min_size=1), min_size=2, max_size=30), st.integers(2, 8))
def test_folds_are_even_and_cover_all_groups(keys: set[str], count: int):
    if count > len(keys):
        with pytest.raises(InputError, match="cannot be divided"):
            splits.folds(keys, count)
        return
    folds = splits.folds(keys, count)
    sizes = collections.Counter(folds.values())
    assert set(folds) == keys
    assert set(sizes) == {f"fold_{i}" for i in range(count)}
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert len(set(splits.folds(keys, None).values())) == len(keys)


def test_given_knows_the_names_in_published_collections():
    words = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test", "val": None}
    for word, part in words.items():
        assert splits.given(word) == (part or "validation")
    with pytest.raises(InputError, match="unknown split 'holdout'"):
        splits.given("holdout")


def test_content_groups_belong_to_their_part_or_are_refused():
    parts = {"train": ["food_market"], "test": ["car_tech"]}
    assert splits.content("car_tech", parts) == "test"
    with pytest.raises(InputError, match="did you mean 'car_tech'"):
        splits.content("cartech", parts)


def test_an_empty_part_is_refused():
    splits.check_parts(["train", "test"], ["train", "test"])
    with pytest.raises(
        InputError, match="validation would be empty.*add some, or use the protocol 'folds'"
    ):
        splits.check_parts(["train", "test"], splits.PARTS)


def test_a_part_and_a_content_group_are_named_once():
    text = "train=food_market, car_tech;Testing=cosmetics_fashion"
    parts = {"train": ["food_market", "car_tech"], "test": ["cosmetics_fashion"]}
    assert splits.content_parts(text) == parts
    for wrong, says in (
        ("train=a;training=b", "names train twice"),
        ("train=a,b;test=b", "names 'b' twice"),
        ("train=a,a;test=b", "names 'a' twice"),
        ("train", "must be PART=GROUP,GROUP;PART=GROUP"),
        ("holdout=a", "unknown split 'holdout'"),
    ):
        with pytest.raises(InputError, match=says):
            splits.content_parts(wrong)
