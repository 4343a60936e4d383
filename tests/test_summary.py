"""The lines before the first step: short, and the counts add up."""

import re
from pathlib import Path

import jax
import pytest
from small_runs import write_dataset

from fer_jax.config import default_config
from fer_jax.data.experiment import open_experiment
from fer_jax.models import xception
from fer_jax.training import classifier


def table(**model: object) -> tuple[dict[str, list[int]], str]:
    shapes, _ = jax.eval_shape(lambda: xception.init(jax.random.key(0), num_classes=7, **model))
    text = classifier.describe_parameters(shapes)
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {row[0]: [int(n.replace(",", "")) for n in row[1:4]] for row in cells[3:] if row}
    return rows, text


def test_the_blocks_add_up_to_the_published_network():
    rows, text = table()
    assert list(rows) == ["stem", "entry", "middle", "exit", "head"]
    assert [row[0] for row in rows.values()] == [2, 3, 8, 3, 1]
    assert sum(row[2] for row in rows.values()) == 20_821_295
    assert rows["head"][2] == 2048 * 7 + 7
    assert text.splitlines()[-1] == "20,821,295 parameters, 79.4 MiB"
    assert len(text.splitlines()) < 12


def test_the_published_head_counts_as_head_and_an_absent_block_is_not_listed():
    rows, text = table(head="mlp", num_middle_blocks=0)
    assert list(rows) == ["stem", "entry", "exit", "head"]
    assert rows["head"][0] == 3
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert abs(sum(shares) - 100) < 0.3


def test_few_validation_images_and_untrained_classes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = [("a", 0)] * 29
    write_dataset(tmp_path, "own", {"train": [("b", 0), ("c", 1)], "validation": few})
    assert "    only 29 images: each is 3% of the accuracy" in capsys.readouterr().out
    write_dataset(tmp_path, "other", {"test": [("d", emotion) for emotion in (0, 2, 6) * 10]})
    assert "only" not in capsys.readouterr().out
    config = default_config()
    config.sources, config.test_sets = ("own",), ("other",)
    few_images, untrained = classifier.unreliable(open_experiment(config, tmp_path))
    assert few_images.startswith("only 29 images to validate on")
    assert untrained == "other test has fear, surprise, but no training image has"
    write_dataset(tmp_path, "all", {"train": few[:7], "validation": [("e", 3), *few]})
    config.sources, config.test_sets = ("all",), ()
    assert classifier.unreliable(open_experiment(config, tmp_path)) == []
