"""Config files, overrides and the mistakes people make with them."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from fer_jax.__main__ import main
from fer_jax.config import (
    OneLineParser,
    as_typed,
    check_config,
    default_config,
    default_generator,
    default_study,
    describe,
    fields,
    from_json,
    load_config,
    override,
    parse_with_config,
    read_config,
    to_json,
)
from fer_jax.errors import InputError
from fer_jax.fields import CLASSIFIER, GENERATOR, STUDY, Fields
from fer_jax.study.scenarios import check_study
from fer_jax.training.gan import check_generator

EMPTY = '""'
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="fer-jax train")
    parser.add_argument("--workdir")
    return parser


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_project_loads(path: Path):
    if path.stem.startswith("study_"):
        assert load_config(str(path), check_study).scenarios
    elif path.stem.startswith("stylegan_"):
        assert load_config(str(path), check_generator).sources
    else:
        assert load_config(str(path)).sources
    assert f"configs/{path.name}" in path.read_text(), "its docstring says the command"


def test_a_studys_config_and_a_runs_are_not_mistaken():
    with pytest.raises(InputError, match="run it with `fer-jax study`"):
        load_config(str(CONFIGS / "study_demo.py"))
    with pytest.raises(InputError, match="train it with `fer-jax train`"):
        load_config(str(CONFIGS / "demo.py"), check_study)
    with pytest.raises(InputError, match="generator's config; run it with `fer-jax train`"):
        load_config(str(CONFIGS / "stylegan_small.py"))


def test_overrides_take_the_type_of_the_default():
    config = default_config()
    override(config, "optimizer.learning_rate", "3e-4")
    override(config, "batch_size", "32")
    override(config, "sources", "a,b/c")
    override(config, "test_sets", "({'name': 'a', 'test': 'fold_0'}, 'b')")
    override(config, "exclusions", "a,b")  # a text stays a text
    override(config, "augment.horizontal_flip", "false")
    override(config, "num_epochs", "3")
    assert config.optimizer.learning_rate == 3e-4
    assert config.batch_size == 32
    assert config.sources == ("a", "b/c")
    assert config.test_sets == ({"name": "a", "test": "fold_0"}, "b")
    assert config.exclusions == "a,b"
    assert config.augment.horizontal_flip is False
    assert config.num_epochs == 3.0
    check_config(config)
    override(config, "sources", "('a/b')")
    assert config.sources == ("a/b",)


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("optimizer.learning_rat", "1", "did you mean 'optimizer.learning_rate'"),
        ("learning_rate", "1", "no field 'learning_rate'"),
        ("optimizer", "adam", "is a block"),
        ("batch_size", "1.5", "a whole number"),
        ("num_epochs", "many", "a number"),
        ("augment.horizontal_flip", "maybe", "true or false"),
        ("sources", "(a", "does not read as a tuple"),
    ],
)
def test_a_wrong_override_is_refused(field: str, text: str, says: str):
    with pytest.raises(InputError, match="(?s)" + says) as error:
        override(default_config(), field, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("task", "mood", "cannot be 'mood'"),
        ("model.dtype", "float31", "did you mean 'float32'"),
        ("batch_size", 0, "at least 1"),
        ("num_epochs", 0.0, "above 0"),
        ("num_epochs", float("nan"), "finite"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("accumulation_steps", 3, "not divisible"),
        ("selection_metric", "test_accuracy", "cannot be"),
        ("seed", -1, "at least 0"),
        ("optimizer.weight_decay", -1.0, "at least 0"),
        ("optimizer.momentum", 1.5, r"in \[0, 1\)"),
        ("method.mixstyle", 1.5, r"in \[0, 1\]"),
        ("method.coral", -1.0, "at least 0"),
        ("method.coral", 1.0, "aligns datasets, and config.sources has 0"),
        ("method.sam", -0.05, "at least 0"),
        ("weight_average", "swa", "did you mean 'swad'"),
        ("freeze", "all", "cannot be 'all'"),
        ("optimizer.layer_decay", 1.1, r"must be in \(0, 1\], got 1.1"),
    ],
)
def test_a_value_no_experiment_can_have_is_refused(field: str, value: object, says: str):
    config = default_config()
    *blocks, last = field.split(".")
    block: Any = config
    for name in blocks:
        block = block[name]
    block[last] = value
    with pytest.raises(InputError, match=says):
        check_config(config)


@pytest.mark.parametrize(
    ("fields_set", "says"),
    [
        ({"method.coral": 1.0, "augment.mixup": 0.2}, "blend their images; set one of them to 0"),
        ({"method.coral": 1.0, "augment.cutmix": 0.2}, "blend their images; set one of them to 0"),
        ({"weight_average": "swad", "ema_decay": 0.9}, "has its own average and its own end"),
        ({"weight_average": "swad", "early_stopping_patience": 3}, "its own end; set config.ema"),
        ({"freeze": "stem"}, "keeps layers of a trained network; name one with --config.init_from"),
        (
            {"freeze": "stem", "init_from": "runs/a", "weight_average": "swad"},
            "config.freeze=stem keeps them; set one of them to none",
        ),
    ],
)
def test_methods_that_exclude_each_other_are_refused(fields_set: dict[str, object], says: str):
    config = default_config()
    config.sources = ("a", "b")
    for name, value in fields_set.items():
        override(config, name, str(value))
    with pytest.raises(InputError, match=says) as error:
        check_config(config)
    assert "\n" not in str(error.value)
    for name in fields_set:
        override(config, name, str(dict(fields(default_config()))[name]))
    check_config(config)


def test_json_keeps_everything():
    config = default_config()
    config.sources = ({"name": "a", "weight": 2.0}, "b")
    again = from_json(to_json(config))
    assert dict(fields(again)) == dict(fields(config))


def test_a_damaged_config_of_a_run_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(to_json(default_config())[:100])
    with pytest.raises(InputError, match="config.json' is damaged") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": "8"}, "config.batch_size must be .*, got '8'"),
        ({"sources": {"a": 1}}, "lacks sources"),
        ({"model": 5}, "lacks model"),
        ({"seed": None}, "config.seed must be"),
        ({"task": ["emotion"]}, "config.task must be"),
        ({"selection_metric": "luck"}, "config.selection_metric cannot be 'luck'"),
        ({"a.b": 1}, "dot"),
    ],
)
def test_a_runs_config_of_other_types_is_refused(change: dict[str, Any], says: str, tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(to_json(default_config())) | change))
    with pytest.raises(InputError, match=f"config.json' was not written by .*: .*{says}") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_a_runs_config_is_a_config_file(tmp_path: Path):
    file = tmp_path / "config.json"
    config = default_config()
    config.sources, config.seed = ({"name": "a", "weight": 2.0}, "b"), 7
    file.write_text(to_json(config))
    words = [f"--config={file}", "--config.batch_size=4"]
    _, found = parse_with_config(parser(), words)
    assert dict(fields(found)) == dict(fields(config)) | {"batch_size": 4}
    file.write_text(to_json(config).replace("batch_size", "batchsize"))
    with pytest.raises(InputError, match="config.json, line .*did you mean 'batch_size'"):
        load_config(str(file))
    file.write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        load_config(str(file))
    file.write_text(to_json(default_study()))
    with pytest.raises(InputError, match="run it with `fer-jax study`"):
        load_config(str(file))


def test_a_run_of_before_a_field_has_its_default(tmp_path: Path):
    config = default_config()
    config.seed = 7
    text = json.loads(to_json(config))
    del text["allow_leaks"], text["model"]["dropout"], text["method"], text["weight_average"]
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert dict(fields(read_config(tmp_path))) == dict(fields(config))


def test_a_config_file_with_a_misspelled_field_is_refused(tmp_path: Path):
    file = tmp_path / "typo.py"
    file.write_text(
        "from fer_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.widht = 0.5\n"
        "    return config\n"
    )
    with pytest.raises(InputError, match="widht") as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nonesuch\n", "broken.py, line 1: No module named 'nonesuch'"),
        (
            "def get_config():\n    return defalt_config()\n",
            "broken.py, line 2: name 'defalt_config' is not defined",
        ),
        ("def get_config():\n    1 / 0\n", "broken.py, line 2: division by zero"),
        ("def get_config():\n    pass\n", r"get_config\(\) must return the config, got NoneType"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict({'task': 'emotion'})\n",
            "the config lacks .*batch_size, .*; start from default_config",
        ),
    ],
)
def test_a_config_file_that_fails_says_where(tmp_path: Path, text: str, says: str):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(InputError, match=says) as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("config.batch_size = 'x'", "config.batch_size must be a whole number, got 'x'"),
        ("config.seed = 1.0", "config.seed must be a whole number, got 1.0"),
        ("config.num_epochs = None", "config.num_epochs must be a number, got None"),
        ("config.sources = 'demo'", "config.sources must be a tuple"),
        (
            "config.optimizer.lr = 1e-3",
            "no field 'optimizer.lr'; did you mean 'optimizer.learning_",
        ),
        ("config.lr = 1e-3", "no field 'lr'; did you mean 'optimizer.learning_rate'"),
        ("config.optimzer.name = 'sgd'", "no field 'optimzer'; did you mean 'optimizer'"),
        ("config.augment = 3", "'augment' is a block; set one of its fields: augment.rotation"),
        ("config.schedule.name = 'cosin'", "cannot be 'cosin'; did you mean 'cosine'"),
        ("config.xyzzy = 3", "no field 'xyzzy'; --help lists the fields"),
    ],
)
def test_a_mistake_in_a_config_file_has_its_line_and_what_is_allowed(
    tmp_path: Path, line: str, says: str
):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fer_jax.config import default_config\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    with pytest.raises(InputError, match=f"mine.py, line 4: .*{re.escape(says)}") as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


def test_a_config_file_may_write_lists_and_whole_numbers(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fer_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        "    config.sources = ['a', 'b']\n    config.optimizer.learning_rate = 1\n"
        "    return config\n"
    )
    config = load_config(str(file))
    assert config.sources == ("a", "b")
    assert isinstance(config.optimizer.learning_rate, float)


def test_missing_and_broken_config_files_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="did you mean '.*demo.py'"):
        load_config(str(CONFIGS / "dmo.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="no get_config"):
        load_config(str(tmp_path / "empty.py"))
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    with pytest.raises(InputError, match="line 1"):
        load_config(str(tmp_path / "broken.py"))
    with pytest.raises(InputError, match="cannot be 'moods'"):
        load_config(str(CONFIGS / "demo.py:moods"))
    with pytest.raises(InputError, match="has no variants; leave out ':small'"):
        load_config(str(CONFIGS / "faces_small.py:small"))


def test_parse_joins_flags_config_and_overrides():
    words = [f"--config={CONFIGS / 'demo.py'}:interest", "--config.batch_size=8"]
    arguments, config = parse_with_config(parser(), words)
    assert isinstance(config, ConfigDict)
    assert (config.task, config.batch_size) == ("interest", 8)
    assert arguments.config.endswith(":interest")


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--config.batch_size", "8"], "batch_size", 8),
        (["--config.num_epochs", "2.5", "--workdir=w"], "num_epochs", 2.5),
        (["--config.allow_leaks"], "allow_leaks", True),
        (["--config.allow_leaks", "--workdir=w"], "allow_leaks", True),
        (["--config.allow_leaks", "false"], "allow_leaks", False),
        (["--config.allow_leaks=1"], "allow_leaks", True),
        (["--noconfig.augment.horizontal_flip"], "augment.horizontal_flip", False),
        (["--config.sources", "a,b"], "sources", ("a", "b")),
    ],
)
def test_fields_are_set_as_with_absl(options: list[str], field: str, value: Any):
    file = str(CONFIGS / "demo.py")
    for named in (["--config", file], [f"--config={file}"]):
        _, config = parse_with_config(parser(), [*named, *options])
        assert dict(fields(config))[field] == value


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--wrkdir=x"], "unknown option '--wrkdir=x'; did you mean '--workdir'"),
        (["--config.batch_size"], "config.batch_size needs a value"),
        (["--noconfig.batch_size"], "config.batch_size must be a whole number, got 'false'"),
        (["--config.batchsize=3"], "did you mean 'batch_size'"),
        (["--config.lr=3"], "did you mean 'optimizer.learning_rate'"),
        (["--batch_size=32"], "'--batch_size=32'; write --config.batch_size=32"),
        (["--lr", "0.1"], "'--lr'; write --config.optimizer.learning_rate=VALUE"),
        (["--config.seed", "-1"], "config.seed must be at least 0, got -1"),
        (["--config.optimizer=sgd"], "'optimizer' is a block; set one of its fields: optimizer."),
    ],
)
def test_mistaken_options_are_refused(options: list[str], says: str):
    with pytest.raises(InputError, match=re.escape(says)):
        parse_with_config(parser(), [f"--config={CONFIGS / 'demo.py'}", *options])


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--jax_debug_nans", "jax_debug_nans", True),
        ("--jax_debug_nans=true", "jax_debug_nans", True),
        ("--nojax_enable_checks", "jax_enable_checks", False),
        ("--jax_default_matmul_precision=highest", "jax_default_matmul_precision", "highest"),
    ],
)
def test_jax_options_act(option: str, name: str, value: Any):
    before = jax.config.values[name]
    try:
        # Without a source the run ends before anything is trained.
        assert main(["train", f"--config={CONFIGS / 'demo.py'}", "--config.sources=", option]) == 2
        assert jax.config.values[name] == value
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize("option", ["--jax_debug_nan", "--jax_debug_nans=perhaps"])
def test_unknown_jax_options_are_refused(option: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", f"--config={CONFIGS / 'demo.py'}", option]) == 2
    assert "jax_debug_nans" in capsys.readouterr().err


def test_help_lists_the_fields_of_the_named_config(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["train", f"--config={CONFIGS / 'demo.py'}", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name, _ in fields(default_config()):
        assert f"--config.{name}=" in printed
        assert describe(CLASSIFIER[name]) in printed
    assert "--config.batch_size=64" in printed


@pytest.mark.parametrize("table", [CLASSIFIER, GENERATOR, STUDY])
def test_the_readme_lists_every_field_with_default_and_meaning(table: Fields):
    rows = [
        f"| `{name}` | `{as_typed(field.default) or EMPTY}` | {describe(field)} |"
        for name, field in table.items()
        if not name.startswith("run.")
    ]
    expected = "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *rows]) + "\n\n"
    assert expected in (CONFIGS / "README.md").read_text(), expected


def test_every_field_has_a_meaning_and_a_default_that_it_allows():
    for table, check in (
        (CLASSIFIER, check_config),
        (GENERATOR, check_generator),
    ):
        assert all(field.meaning for field in table.values())
        defaults = default_config() if table is CLASSIFIER else default_generator()
        assert dict(fields(check(defaults))) == {n: field.default for n, field in table.items()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--config=nowhere.py", "--workdir=x"], "no config file"),
        (["train", "--workdir=x"], "required: --config"),
        (["evaluate", "--workdir=nowhere"], "holds no run"),
        (["evaluate", "--workdir=gs://bucket/run"], "--workdir must be a path of this machine"),
        (["audit", "x", "--workdir=y", "--data_dir=s3://b"], "got a URL of 's3'; mount the bucket"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_a_file_in_a_folders_place_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "taken").write_text("")
    assert main(["build", "demo/controlled", f"--data_dir={tmp_path / 'taken'}"]) == 2
    printed = capsys.readouterr().err
    assert printed == f"fer-jax: --data_dir '{tmp_path / 'taken'}' is a file; name a folder\n"
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=configs/demo.py", "--workdir"],
        ["study", "--config=configs/study_demo.py", "--workdir"],
        ["reproduce", "runs/demo", "--workdir"],
        ["demo", "--workdir"],
        ["build", "demo/controlled", "--data_dir"],
        ["audit", "demo/controlled", "--workdir"],
        ["audit", "demo/controlled", "--workdir=.", "--write_exclusions"],
        ["benchmark", "statistics", "--workdir"],
        ["export", "--workdir=runs/demo", "--out"],
        ["predict", "photos", "--model=runs/demo", "--out"],
        ["synthesize", "--network=network", "--count=1", "--out"],
        ["collect", "links.csv", "--output"],
        ["compare", "runs/a", "runs/b", "--output"],
        ["convert", "network.pkl"],
    ],
)
def test_what_cannot_be_written_is_one_line_before_anything_is_done(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("link")
    flag = f"{words.pop()}=" if words[-1].startswith("--") and "=" not in words[-1] else ""
    for place, says in (
        ("/proc/self/here/x", "No such file or directory"),
        (tmp_path / "file" / "run", "file' is not a folder"),
        (tmp_path / "link" / "run", "link' is not a folder"),
        ("", "it is empty; name a path"),
    ):
        assert main([*words, f"{flag}{place}"]) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]):
    for words in (["evaluate", "--workdir="], ["report", "--workdir="], ["page", "--model="]):
        assert main(words) == 2
        assert "it is empty; name a path" in capsys.readouterr().err
