"""Train a classifier or a face generator, as the config says."""

from pathlib import Path

from fer_jax import compilations
from fer_jax.config import (
    Config,
    OneLineParser,
    check_config,
    default_data_dir,
    is_generator,
    output_path,
    parse_with_config,
)
from fer_jax.training import gan
from fer_jax.training.classifier import train


def main(argv: list[str]) -> None:
    """Runs the verb `train`."""
    parser = OneLineParser("fer-jax train", __doc__)
    parser.add_argument("--workdir", type=output_path, required=True, help="of the run")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())

    def check(config: Config) -> Config:
        return gan.check_generator(config) if is_generator(config) else check_config(config)

    arguments, config = parse_with_config(parser, argv, check=check)
    compilations.enable_compilation_cache()
    if is_generator(config):
        best = gan.train(config, arguments.workdir, arguments.data_dir)
        print(f"{gan.METRIC} {best[gan.METRIC]:.4g} at step {best['step']}; generate faces with:")
        print(
            f"  fer-jax synthesize --network={arguments.workdir / gan.FOLDER} --out=DIR --count=100"
        )
        return
    best = train(config, arguments.workdir, arguments.data_dir)
    metric = config.selection_metric
    print(
        f"{metric.replace('_', ' ')} {best[metric]:.4f} at step {best['step']}; evaluate it with:"
    )
    print(f"  fer-jax evaluate --workdir={arguments.workdir}")
