r"""What is each source worth? All together, without each in turn, and the largest alone.

The datasets are built as configs/all_sources.py says.

    fer-jax study --config=configs/study_leave_one_out.py --workdir=DIR \
      --write_exclusions=leave_out.csv
    fer-jax study --config=configs/study_leave_one_out.py --workdir=DIR \
      --config.run.exclusions=leave_out.csv

Every run takes as many steps as the mixture of all. Three seeds are 27 runs: one a job, by --run=N.
Reduced, for 47 minutes of two busy CPU cores: `"--config.seeds=(0,)" --config.run.model.width=0.25
--config.run.num_epochs=2 --config.run.ema_decay=0.99`; README has what came of it.
"""

from pathlib import Path

from fer_jax.config import Config, default_study, load_config


def get_config() -> Config:
    """The study."""
    everything = load_config(str(Path(__file__).with_name("all_sources.py")))
    config = default_study()
    config.question = "What does each source add to a mixture of all?"
    config.protocol = (
        "train, validation and test parts by person where people are named; fer2013: the last "
        "twentieth of its training part validates, and the official validation part tests"
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
