"""The lines before the first step: short, and the counts add up."""

import re

import jax

from fer_jax.models import xception
from fer_jax.training import summary


def table(**model: object) -> tuple[dict[str, list[int]], str]:
    shapes, _ = jax.eval_shape(lambda: xception.init(jax.random.key(0), num_classes=7, **model))
    text = summary.parameters(shapes)
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
