r"""What does each dataset contribute? All together, without each in turn, the largest alone.

The datasets are built as configs/all_sources.py says.

    fer-jax study --config=configs/study_leave_one_out.py --workdir=DIR \
      --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_leave_one_out.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

All runs take equal steps. Three seeds give 27 runs; --run=N runs one of them, for one job each.
Reduced to 47 minutes on two CPU cores by `"--config.seeds=(0,)" --config.run.model.width=0.25
--config.run.num_epochs=2 --config.run.ema_decay=0.99`; configs/README.md has its results.
"""

from pathlib import Path

from fer_jax.config import Config, default_study, load_config


def get_config() -> Config:
    """Returns the study."""
    everything = load_config(str(Path(__file__).with_name("all_sources.py")))
    config = default_study()
    config.question = "What does each dataset add to a mixture of all?"
    config.protocol = (
        "parts by person where people are known; fer2013: the last twentieth of its training part "
        "for validation, the official validation part as the test"
    )
    short = {source["name"].split("/")[0]: source for source in everything.sources}
    config.scenarios = (
        {"name": "all", "sources": tuple(short.values())},
        *(
            {
                "name": f"without_{left_out}",
                "sources": tuple(source for name, source in short.items() if name != left_out),
            }
            for left_out in short
        ),
        {"name": "fer2013_alone", "sources": (short["fer2013"],)},
    )
    config.test_sets = everything.test_sets
    config.seeds = (0, 1, 2)
    everything.sources = everything.test_sets = ()
    config.run = everything
    return config
