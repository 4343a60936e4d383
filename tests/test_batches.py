"""The order of training images: exact shares, no repeats, the same again after a restart."""

import functools

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.data import batches
from fer_jax.data.records import Records
from fer_jax.errors import InputError
from fer_jax.schema import EMOTIONS


class Serialized(list):
    """Stands in for TFDS' random access."""


def records(name: str, labels: list[int], size: int = 16) -> Records:
    """Records whose image is grey of value 3 * row, so that a batch says what it holds."""
    from tensorflow_datasets.proto import tf_example_pb2

    serialized = Serialized()
    for row in range(len(labels)):
        face = np.full((size, size, 3), 3 * row, np.uint8)
        example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)
        image = example.features.feature["image"].bytes_list.value
        image.append(cv2.imencode(".jpg", face)[1].tobytes())
        serialized.append(example.SerializeToString())
    columns = {
        "emotion": np.asarray(labels),
        "interest": np.asarray(labels) % 2,
        "emotion_probabilities": np.full((len(labels), len(EMOTIONS)), 1 / 7, np.float32),
    }
    return Records(name, "train", columns, serialized, np.arange(len(labels)))


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(LABELS, min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 40),
)
def test_every_epoch_takes_each_groups_share_and_repeats_nothing_early(
    labels: list[list[int]],
    weights: list[float],
    balance_sources: bool,
    balance_classes: bool,
    size: int,
):
    sources = [records(str(index), part) for index, part in enumerate(labels)]
    mixture = batches.mix(
        sources,
        "emotion",
        weights=weights[: len(sources)],
        balance_sources=balance_sources,
        balance_classes=balance_classes,
    )
    assert sorted(np.concatenate(mixture.strata)) == list(range(len(mixture)))
    assert mixture.shares.sum() == pytest.approx(1)
    epochs = [batches.epoch_order(mixture, size, epoch, seed=1) for epoch in range(4)]
    for order in epochs:
        assert len(order) == size
        for members, share in zip(mixture.strata, mixture.shares, strict=True):
            assert abs(np.isin(order, members).sum() - share * size) < 1
    for members in mixture.strata:
        times = np.bincount(np.concatenate(epochs), minlength=len(mixture))[members]
        assert times.max() - times.min() <= 1


def test_order_depends_on_seed_and_epoch_only():
    mixture = batches.mix([records("a", list(range(7)) * 4)], "emotion", weights=[0.0])
    first = batches.epoch_order(mixture, 28, 0, seed=1)
    np.testing.assert_array_equal(first, batches.epoch_order(mixture, 28, 0, seed=1))
    assert not np.array_equal(first, batches.epoch_order(mixture, 28, 1, seed=1))
    assert not np.array_equal(first, batches.epoch_order(mixture, 28, 0, seed=2))


def test_weights_and_balance_decide_how_often_a_class_comes():
    sources = [records("a", [0] * 9 + [1]), records("b", [2] * 10)]
    plain = batches.mix(sources, "emotion", weights=[3.0, 1.0])
    np.testing.assert_allclose(plain.class_shares[:3], [0.675, 0.075, 0.25])
    balanced = batches.mix(
        sources, "emotion", weights=[3.0, 1.0], balance_sources=True, balance_classes=True
    )
    np.testing.assert_allclose(balanced.class_shares[:3], [0.25, 0.25, 0.5])


def test_unknown_labels_are_left_out():
    mixture = batches.mix([records("a", [0, -1, 1, -1])], "emotion", weights=[0.0])
    assert len(mixture) == 2
    np.testing.assert_array_equal(mixture.row, [0, 2])
    with pytest.raises(InputError, match="no record of a train has a label"):
        batches.mix([records("a", [-1, -1])], "emotion", weights=[0.0])


def test_soft_labels_are_the_votes():
    hard = batches.mix([records("a", [3])], "emotion", weights=[0.0])
    soft = batches.mix([records("a", [3])], "emotion", weights=[0.0], soft_labels=True)
    np.testing.assert_array_equal(hard.targets, [[0, 0, 0, 1, 0, 0, 0]])
    np.testing.assert_allclose(soft.targets, np.full((1, 7), 1 / 7))


def stream(mixture: batches.Mixture, **options: int):
    arguments = {"batch_size": 4, "num_steps": 12, "seed": 5} | options
    read = functools.partial(mixture.images, image_size=16)
    return batches.train_batches(mixture, read, **arguments)


def content(batch: dict[str, np.ndarray]) -> list[int]:
    """Which rows a batch holds (JPEG moves a grey value by less than half the step of 3)."""
    return np.rint(batch["image"].mean(axis=(1, 2, 3)) / 3).astype(int).tolist()


def test_a_restored_iterator_continues_exactly():
    mixture = batches.mix([records("a", list(range(7)) * 3)], "emotion", weights=[0.0])
    whole = [content(batch) for batch in stream(mixture)]
    assert len(whole) == 12
    assert sorted(sum(whole[:5], [])) == sorted(set(sum(whole[:5], [])))
    iterator = stream(mixture)
    before = [content(next(iterator)) for _ in range(7)]
    continued = stream(mixture)
    continued.set_state(iterator.get_state())
    assert before + [content(batch) for batch in continued] == whole


def test_processes_share_each_batch(monkeypatch: pytest.MonkeyPatch):
    mixture = batches.mix([records("a", list(range(7)) * 3)], "emotion", weights=[0.0])
    whole = [content(batch) for batch in stream(mixture)]
    parts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        parts.append([content(batch) for batch in stream(mixture)])
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_targets_belong_to_their_images():
    labels = [0, 1, 2, 3, 4, 5, 6] * 3
    mixture = batches.mix(
        [records("a", labels), records("b", labels[::-1])], "emotion", weights=[1.0, 2.0]
    )
    order = batches.epoch_order(mixture, 40, 0, seed=5)
    seen, domains = [], []
    for batch in stream(mixture, num_steps=10):
        seen += content(batch)
        assert batch["image"].shape == (4, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["target"].sum(axis=1), 1)
        assert batch["domain"].dtype == np.int32
        domains += batch["domain"].tolist()
    np.testing.assert_array_equal(seen, mixture.row[order])
    np.testing.assert_array_equal(domains, mixture.source[order])


def test_evaluation_covers_every_row_once_and_fills_up():
    source = records("a", [0] * 11)
    rows = np.asarray([0, 2, 3, 5, 6, 7, 10])
    found = [
        content({"image": images})
        for images in batches.evaluation_batches(source, rows, batch_size=3, image_size=16)
    ]
    assert [len(batch) for batch in found] == [3, 3, 3]
    assert sum(found, [])[:7] == rows.tolist()


def test_a_batch_larger_than_the_data_is_refused():
    mixture = batches.mix([records("a", [0, 1])], "emotion", weights=[0.0])
    with pytest.raises(InputError, match="more than the 2 training images"):
        stream(mixture)


def test_a_damaged_record_is_named():
    source = records("a", [0, 1, 2, 3])
    assert isinstance(source.serialized, list)
    source.serialized[2] = source.serialized[2][:60]
    with pytest.raises(InputError, match="record 2 of a train"):
        source.images([0, 2], 16)
