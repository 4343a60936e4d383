"""Operations are counted from the shapes; peaks are the data sheets'."""

import pytest

from fer_jax.models import flops

MODEL = {"num_classes": 7, "image_size": 224}


def test_operations_are_counted_from_the_shapes():
    # Other tools count 4.55 and 8.4 thousand million multiply-adds at 224 and 299 pixels.
    assert flops.count(**MODEL)[0] == pytest.approx(9.10e9, rel=1e-3)
    assert flops.count(**MODEL | {"image_size": 299})[0] / 2 == pytest.approx(8.36e9, rel=0.01)
    gap, _ = flops.count(**MODEL)
    mlp, _ = flops.count(**MODEL, head="mlp")
    assert mlp - gap == 2 * (7 * 7 * 2048 * 512 + 512 * 512 + 512 * 7 - 2048 * 7)


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("Tesla V100-SXM2-16GB", "float16", 125e12),
        ("NVIDIA L40S", "bfloat16", None),  # not an L4
        ("cpu", "float32", None),
    ],
)
def test_a_peak_belongs_to_a_device_and_a_dtype(kind: str, dtype: str, peak: float | None):
    assert flops.peak(kind, dtype) == peak
