"""The program that trains a generator: records in, a network and what it is worth out.

Read `train` from top to bottom: data, networks, the parts of a step, the loop. It stands on the
floors of the classifier's training: the same records, batches, checkpoints, log and guards.
"""

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fer_jax import checkpoints, distributed, storage
from fer_jax.config import (
    Config,
    check_fields,
    default_config,
    fields,
    from_json,
    read_config,
    to_json,
)
from fer_jax.data import batches
from fer_jax.data.augment import normalize
from fer_jax.data.experiment import EXCLUSIONS_FILE, allowed_leaks, as_source, open_experiment
from fer_jax.data.synthetic import check_teachers
from fer_jax.errors import InputError, Preempted, did_you_mean
from fer_jax.fields import GENERATOR
from fer_jax.models.stylegan2 import DiscriminatorConfig, GeneratorConfig, MappingConfig
from fer_jax.models.xception import grey
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated
from fer_jax.synthesis.generator import Generator
from fer_jax.training import (
    ada,
    gan_step,
    lock,
    memory,
    pipeline,
    preemption,
    profile,
    snapshots,
    start,
    watchdog,
)
from fer_jax.training.environment import write_environment
from fer_jax.training.gan_step import Recipe, State
from fer_jax.training.log import MetricsLog, ProgressLine, write_atomically
from fer_jax.training.speed import Stopwatch
from fer_jax.weights import convert, nvidia

MIN_CLASS_IMAGES = 50
GREY_TOLERANCE = 8  # levels between the channels of a grey picture, after JPEG
# Of the published configurations: activations beyond it are cut, where they are short of range.
CLAMP = 256.0
CHANGEABLE = ("test_sets", "allow_leaks", "num_images", "log_every_steps", "keep_checkpoints")
CHANGEABLE += ("profile", "input", "measure.images", "measure.features")
METRIC = "kid"
FOLDER = "generator"  # of a workdir

Step = Callable[..., tuple[State, dict[str, jax.Array]]]


class Parts(NamedTuple):
    """The compiled parts of a step: (state, batch, key) -> (state, scalars)."""

    discriminator: Step
    r1: Step
    generator: Step
    path: Step


def check_generator(config: Config) -> Config:
    """Refuses a config that no generator can be trained with.

    Raises:
      InputError: names the field, its value and what is accepted.
    """
    check_fields(config, GENERATOR)
    for name in config.augment.groups:
        if name not in ada.GROUPS:
            hint = did_you_mean(name, ada.GROUPS)
            raise InputError(f"config.augment.groups cannot have '{name}'{hint}")
    if config.class_weight and not config.model.conditional:
        raise InputError(
            "config.class_weight is of telling classes apart, and config.model.conditional is "
            "false; set one of them otherwise"
        )
    if config.measure.images < snapshots.MIN_IMAGES:
        raise InputError(
            f"config.measure.images must be at least {snapshots.MIN_IMAGES}, not "
            f"{config.measure.images}"
        )
    recipe = recipe_of(config)
    if config.freeze_blocks >= len(recipe.discriminator.resolutions):
        raise InputError(
            f"config.freeze_blocks {config.freeze_blocks} leaves nothing of the discriminator's "
            f"{len(recipe.discriminator.resolutions)} blocks to learn"
        )
    return config


def recipe_of(config: Config) -> Recipe:
    """The networks and the constants of a training.

    Raises:
      InputError: sizes that make no network.
    """
    model = config.model
    num_classes = len(TASKS[config.task]) if model.conditional else 0
    shared = {
        "resolution": model.image_size,
        "channel_base": model.channel_base,
        "channel_max": model.channel_max,
        "conv_clamp": None if model.dtype == "float32" else CLAMP,
    }
    generator = GeneratorConfig(
        mapping=MappingConfig(
            z_dim=model.latent_dim,
            c_dim=num_classes,
            w_dim=model.latent_dim,
            num_layers=model.mapping_layers,
            embed_features=model.latent_dim,
            layer_features=model.latent_dim,
        ),
        **shared,
    )
    # As wide as the last features, on which it is projected.
    width = generator.channels(4)
    discriminator = DiscriminatorConfig(
        mapping=MappingConfig(
            z_dim=0,
            c_dim=num_classes,
            w_dim=width,
            num_layers=model.mapping_layers,
            embed_features=width,
            layer_features=width,
        )
        if num_classes
        else None,
        mbstd_group_size=math.gcd(4, config.batch_size),
        **shared,
    )
    return _with_constants(config, generator, discriminator)


def _with_constants(
    config: Config, generator: GeneratorConfig, discriminator: DiscriminatorConfig
) -> Recipe:
    gamma = config.r1_gamma or gan_step.r1_gamma(config.model.image_size, config.batch_size)
    return Recipe(
        generator=generator,
        discriminator=discriminator,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        r1_gamma=gamma,
        r1_interval=config.r1_interval,
        path_weight=config.path_weight,
        path_interval=config.path_interval,
        style_mixing=config.style_mixing,
        class_weight=config.class_weight,
        average_images=config.average_images,
        average_rampup=config.average_rampup,
        augment_groups=tuple(config.augment.groups),
        augment_target=config.augment.target,
        augment_images=config.augment.images,
        frozen_layers=config.freeze_blocks,
        dtype=config.model.dtype,
    )


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains a generator, or continues what is in `workdir`, until it saw the config's images.

    Args:
      config: from `default_generator`.
      workdir: receives config.json, environment.json, metrics.jsonl, tensorboard/, checkpoints/,
        samples/ (a grid of the same faces each time), and generator/, the network of the best
        measure as `load_generator` and `synthesize` take it.
      data_dir: where the datasets were built.

    Returns:
      The best measure: {"step", "kid", "frechet", "precision", "recall", ...}.

    Raises:
      InputError: anything in the config, the data or the workdir that a person must change,
        and a loss that is not finite, with its step.
      Preempted: a signal came; what was done is saved.
    """
    storage.check_links(workdir)
    with lock.held(workdir), preemption.heeded() as notice, watchdog.watching() as dog:
        return _train(config, workdir, data_dir, notice, dog)


def _train(
    config: Config,
    workdir: Path,
    data_dir: Path,
    notice: preemption.Notice,
    dog: watchdog.Watchdog,
) -> dict[str, float]:
    start.check_continues(config, workdir, data_dir, changeable=CHANGEABLE)
    last, loop = checkpoints.latest_valid_step(workdir)
    history: list[dict[str, float]] = loop.get("history", [])
    mesh = make_mesh()
    # Path lengths are measured on half of a batch.
    check_batch_size(config.batch_size, 2 if config.path_weight else 1, mesh)
    recipe = recipe_of(config)
    first_networks = _start_networks(config, recipe) if config.init_from else {}
    if first_networks:
        recipe = dataclasses.replace(
            recipe,
            generator=first_networks["G"].config,
            discriminator=first_networks["D"].config,
        )
    recipe = dataclasses.replace(recipe, mesh=mesh)
    experiment = open_experiment(config, data_dir)
    leaks = allowed_leaks(experiment.sides, allow=config.allow_leaks)
    check_teachers(experiment.train, experiment.test, data_dir, allow=config.allow_leaks)
    mixture = batches.mix(
        experiment.train,
        config.task,
        weights=[as_source(entry).weight for entry in config.sources],
        **config.mixture,
    )
    start.check_images(len(mixture), loop, workdir)
    if not last:
        check_images(mixture, config)
    num_steps = -(-config.num_images // config.batch_size)
    measure_every = max(1, round(config.measure.every_images / config.batch_size))
    traced = profile.steps(config.profile, num_steps=num_steps)
    if last >= num_steps and history and history[-1]["step"] == last:
        print(f"'{workdir}' is finished: nothing to do after step {last}")
        return best_of(history)

    writes = distributed.is_first()
    if writes:
        write_atomically(workdir / "config.json", to_json(config))
        if config.exclusions:
            write_atomically(workdir / EXCLUSIONS_FILE, Path(config.exclusions).read_bytes())
        write_environment(workdir, data_dir, experiment, leaks)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    init = functools.partial(gan_step.init_state, recipe=recipe)
    shapes = jax.eval_shape(init, init_key)
    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    step_key = jax.jit(lambda key: key, out_shardings=replicated(mesh))(step_key)
    parts = compiled_parts(
        recipe, everywhere, mesh, grayscale=config.grayscale, flip=config.horizontal_flip
    )
    loader = _loader(config)
    iterator, place = pipeline.open_source(
        loader, mixture, mesh, workdir, num_steps=num_steps, free=memory.free_bytes()
    )
    judge = snapshots.open_judge(config, mixture)
    manager = checkpoints.open_checkpoints(workdir, keep=config.keep_checkpoints, metric=METRIC)
    if last:
        state = _restored(manager, last, shapes, everywhere)
        iterator.set_state(loop["iterator"])
        print(f"continuing from step {last}")
    else:
        state = jax.jit(init, out_shardings=everywhere)(init_key)
        if first_networks:
            state = jax.device_put(_started(state, first_networks), everywhere)
            print(f"started from {config.init_from}")
    print(_summary(config, recipe, mixture, state, mesh, num_steps))
    under_way = list(loop.get("pending", []))
    log = MetricsLog(workdir, after_step=last - len(under_way), writes=writes)
    if not last:
        log.write_hparams(dict(fields(from_json(to_json(config)))))
    progress = ProgressLine(num_steps, stream=sys.stderr if writes else sys.stdout)
    stopwatch = Stopwatch(last, batch_size=config.batch_size)
    number = last

    def check_finite(rows: Sequence[dict[str, float]], reached: int) -> None:
        for step, row in enumerate(rows, reached - len(rows) + 1):
            wrong = [name for name, value in row.items() if not math.isfinite(value)]
            if not wrong:
                continue
            manager.wait_until_finished()
            saved = max(manager.all_steps(), default=None)
            raise InputError(
                f"the {wrong[0].replace('_', ' ')} is not finite at step {step}, of "
                f"{pipeline.told_batch(loader, mixture, step, workdir)}; "
                f"{'no checkpoint was written yet' if saved is None else f'step {saved} is saved'}"
                ". Lower config.learning_rate, or raise config.r1_gamma"
            )

    def report(done: list[dict[str, Any]], reached: int) -> dict[str, float]:
        """Waits for steps and shows them; what metrics.jsonl has of them."""
        rows = _numbers(done)
        check_finite(rows, reached)
        scalars = _means(rows) | stopwatch.figures(reached)
        progress.show(reached, **{name: scalars[name] for name in SHOWN if name in scalars})
        return scalars | {"images": float(reached * config.batch_size)}

    def save(metrics: dict[str, float] | None) -> None:
        dog.between_steps(f"saving step {number}")
        loop = {
            "iterator": iterator.get_state(),
            "history": history,
            "pending": _numbers(under_way),
            "images": len(mixture),
        }
        network, training = split_state(state)
        checkpoints.save(
            manager, number, network=network, training=training, loop=loop, metrics=metrics
        )

    def measure() -> dict[str, float]:
        """The grid, the measures, and the network where it is the best so far."""
        dog.between_steps(f"the measures at step {number}")
        found = np.zeros(len(snapshots.NAMES))
        generator = generator_of(state, recipe)
        if writes:
            grid = snapshots.write_grid(workdir, number, generator, config.task)
            log.write_images(number, {"faces": grid[None]})
            measured = judge(generator)
            found[:] = [measured[name] for name in snapshots.NAMES]
        if jax.process_count() > 1:
            found = multihost_utils.broadcast_one_to_all(found)
        row: dict[str, float] = dict(zip(snapshots.NAMES, map(float, found), strict=True))
        following = [*history, {"step": number} | row]
        if writes and best_of(following)["step"] == number:
            write_network(workdir, generator, config, mixture, {"step": number} | row)
        progress.note(snapshots.line(number, following, METRIC, config.measure.features))
        return row

    notice.trained = True
    try:
        while number < num_steps or not (history and history[-1]["step"] == number):
            due = number >= num_steps or (number and number % measure_every == 0)
            if due and not (history and history[-1]["step"] == number):
                scalars = report(under_way, number) if under_way else {}
                row = measure()
                history, under_way = [*history, {"step": number} | row], []
                log.write_scalars(number, scalars | row)
                log.flush()
                save(row)
                stopwatch.restart(number)
                continue

            number += 1
            dog.step(number)
            asked = time.monotonic()
            batch = place(next(iterator))
            stopwatch.waited(time.monotonic() - asked)
            # Each part compiles when it is first needed.
            early = number - last <= max(recipe.r1_interval, recipe.path_interval)
            dog.doing(f"step {number}", slow=early or number in traced)
            profile.turn_on(number, traced, continued_from=last, workdir=workdir)
            state, scalars = _one_step(parts, recipe, state, batch, step_key, number)
            jax.tree.map(lambda x: x.copy_to_host_async(), scalars)
            under_way.append(scalars)
            profile.turn_off(number, traced, state)
            # The host waits for the step before this one, as in the classifier's loop.
            jax.block_until_ready(under_way[:-1])
            if under_way[:-1] and (number - 1) % config.log_every_steps == 0:
                log.write_scalars(number - 1, report(under_way[:-1], number - 1))
                under_way = under_way[-1:]
            manager.raise_if_failed()
            notice.check()
    except Preempted as asked:
        # First of all: a state that is broken shall not be the one to continue from.
        check_finite(_numbers(under_way), number)
        if number not in manager.all_steps():
            save(None)
        manager.wait_until_finished()
        raise Preempted(
            f"{asked.message}: step {number} is saved; the same command continues"
        ) from None
    finally:
        log.close()
    dog.between_steps(f"saving step {number}")
    manager.close()
    distributed.wait_for_all("trained")
    return best_of(history)


SHOWN = (
    "discriminator_loss",
    "generator_loss",
    "r1",
    "augment_p",
    "real_class_accuracy",
    "made_class_accuracy",
    "images_per_second",
    "data_wait_share",
)


def best_of(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The measures of the network that generator/ holds."""
    best = checkpoints.best_step(list(history), METRIC)
    return next(row for row in history if row["step"] == best)


def _loader(config: Config) -> Config:
    """What `training.source` reads of a config, of a generator's."""
    loader = default_config()
    loader.update({name: config[name] for name in ("batch_size", "seed", "input")})
    loader.model.image_size = config.model.image_size
    return loader


def check_images(mixture: batches.Mixture, config: Config) -> None:
    """Refuses images of which no generator can be made.

    Raises:
      InputError: a class with too few images or with none, or grey and coloured ones together.
    """
    counts = mixture.targets.sum(axis=0).astype(int)
    if config.model.conditional:
        named = dict(zip(TASKS[config.task], counts, strict=True))
        few = [f"{name} ({count})" for name, count in named.items() if count < MIN_CLASS_IMAGES]
        if few:
            raise InputError(
                f"too few images to learn {', '.join(few)} from: each class needs at least "
                f"{MIN_CLASS_IMAGES}; add sources, or set config.model.conditional=false"
            )
    elif counts.sum() < MIN_CLASS_IMAGES:
        raise InputError(
            f"{counts.sum()} images are too few; at least {MIN_CLASS_IMAGES} are needed"
        )
    if config.grayscale:
        return
    is_grey = np.empty(len(mixture), bool)
    for number in range(len(mixture)):
        part = mixture.records[int(mixture.source[number])]
        face = part.image(int(mixture.row[number])).astype(np.int16)
        is_grey[number] = np.ptp(face, axis=-1).max() <= GREY_TOLERANCE
    if is_grey.any() and not is_grey.all():
        which = [
            f"{part.name} {np.mean(is_grey[mixture.source == index]):.0%} grey"
            for index, part in enumerate(mixture.records)
        ]
        raise InputError(
            f"grey and coloured images are mixed ({', '.join(which)}), and the network would learn "
            "to tell sources apart; set config.grayscale=true, or train on one kind"
        )


def _start_networks(config: Config, recipe: Recipe) -> dict[str, nvidia.Network]:
    """The networks of config.init_from: "G", "G_ema" and "D".

    Raises:
      InputError: they are not there, or of another size or other classes than the config asks.
    """
    path = Path(config.init_from)
    if not path.exists():
        raise InputError(f"config.init_from '{path}' does not exist")
    of_run = (path / checkpoints.FOLDER).is_dir()
    networks = _of_run(path) if of_run else convert.read_networks(path)
    if "D" not in networks or not networks.keys() & {"G", "G_ema"}:
        raise InputError(
            f"config.init_from '{path}' has {', '.join(networks)}: a generator and its "
            "discriminator D are needed to go on"
        )
    networks.setdefault("G_ema", networks.get("G") or networks["G_ema"])
    networks.setdefault("G", networks["G_ema"])
    own, other = recipe.generator, networks["G"].config
    assert isinstance(other, GeneratorConfig)
    for what, wanted, there in (
        ("pixels a side", own.resolution, other.resolution),
        ("classes", own.mapping.c_dim, other.mapping.c_dim),
        ("channels of its images", own.img_channels, other.img_channels),
    ):
        if wanted != there:
            raise InputError(
                f"config.init_from '{path}' has {there} {what}, and the config asks for {wanted}"
            )
    return networks


def _of_run(workdir: Path) -> dict[str, nvidia.Network]:
    """The networks of another run's last checkpoint."""
    recipe = recipe_of(check_generator(read_config(workdir, of_generator=True)))
    shapes = jax.eval_shape(
        functools.partial(gan_step.init_state, recipe=recipe), jax.random.key(0)
    )
    everywhere = jax.tree.map(lambda _: replicated(make_mesh()), shapes)
    step = max(checkpoints.finished_steps(workdir), default=0)
    if not step:
        raise InputError(f"config.init_from '{workdir}' holds no finished checkpoint")
    network, training = split_state(_targets(shapes, everywhere))
    network, training = checkpoints.read(workdir, step, network=network, training=training)
    return networks_of(State(**network, **training), recipe)


def _started(state: State, networks: dict[str, nvidia.Network]) -> State:
    """A fresh state with the parameters of other networks."""
    generator, _ = nvidia.to_trees(networks["G"])
    average, buffers = nvidia.to_trees(networks["G_ema"])
    discriminator, _ = nvidia.to_trees(networks["D"])
    w_average = state.w_average
    if "w_avg" in buffers:
        w_average = jnp.broadcast_to(buffers["w_avg"], w_average.shape)
    return dataclasses.replace(
        state,
        generator=generator,
        average=average,
        discriminator=discriminator,
        w_average=w_average,
        noise=buffers["noise"],
    )


def compiled_parts(
    recipe: Recipe, everywhere: State, mesh: Mesh, *, grayscale: bool = False, flip: bool = True
) -> Parts:
    """The parts of a step as programs, which take {"image": uint8, "target": float32}.

    Args:
      recipe: of the training.
      everywhere: the state's shardings.
      mesh: from `make_mesh`.
      grayscale: whether the images' colours are left out.
      flip: whether half of the images are mirrored.
    """
    conditional = bool(recipe.generator.mapping.c_dim)

    def part(step: Step, *, sees_images: bool) -> Step:
        def run(state: State, batch: dict[str, jax.Array], key: jax.Array) -> Any:
            flip_key, key = jax.random.split(key)
            classes = batch["target"] if conditional else None
            if not sees_images:
                return step(state, classes, key, recipe=recipe)
            images = normalize(batch["image"])
            if grayscale:
                images = grey(images)
            if flip:
                mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
                images = jnp.where(mirrored, images[:, :, ::-1], images)
            return step(state, images, classes, key, recipe=recipe)

        return jax.jit(
            run,
            in_shardings=(everywhere, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(everywhere, replicated(mesh)),
            donate_argnums=0,
        )

    return Parts(
        discriminator=part(gan_step.discriminator_step, sees_images=True),
        r1=part(gan_step.r1_step, sees_images=True),
        generator=part(gan_step.generator_step, sees_images=False),
        path=part(gan_step.path_step, sees_images=False),
    )


def _one_step(
    parts: Parts, recipe: Recipe, state: State, batch: Any, key: jax.Array, number: int
) -> tuple[State, dict[str, jax.Array]]:
    """Step `number`, from 1, with the lazy parts that are due."""
    batch = {name: batch[name] for name in ("image", "target")}
    keys = jax.random.split(jax.random.fold_in(key, number), 4)
    state, scalars = parts.discriminator(state, batch, keys[0])
    if recipe.r1_gamma and number % recipe.r1_interval == 0:
        state, more = parts.r1(state, batch, keys[1])
        scalars |= more
    state, more = parts.generator(state, batch, keys[2])
    scalars |= more
    if recipe.path_weight and number % recipe.path_interval == 0:
        state, more = parts.path(state, batch, keys[3])
        scalars |= more
    return state, scalars


def _numbers(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(x) for name, x in row.items()} for row in jax.device_get(list(rows))]


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the rows that have it, and of the probability the last."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    means = {n: float(np.mean([row[n] for row in rows if n in row])) for n in names}
    return means | {n: rows[-1][n] for n in ("augment_p",) if n in means}


def split_state(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what makes images, what only training needs)."""
    whole = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    network = {name: whole.pop(name) for name in ("average", "w_average", "noise")}
    return network, whole


def _targets(shapes: State, everywhere: State) -> State:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, everywhere
    )


def _restored(
    manager: checkpoints.ChecksummedManager, step: int, shapes: State, everywhere: State
) -> State:
    network, training = split_state(_targets(shapes, everywhere))
    network, training, _ = checkpoints.restore(manager, step, network=network, training=training)
    return State(**network, **training)


def generator_of(state: State, recipe: Recipe) -> Generator:
    """The averaged generator, as `load_generator` returns it."""
    local = jax.tree.map(np.asarray, (state.average, state.noise, state.w_average))
    average, noise, w_average = local
    buffers = {"noise": noise, "w_avg": w_average.mean(axis=0)}
    return Generator(recipe.generator, average, buffers, recipe.dtype)


def networks_of(state: State, recipe: Recipe) -> dict[str, nvidia.Network]:
    """What `config.init_from` goes on from: "G_ema", "G" and "D"."""
    generator = generator_of(state, recipe)
    parameters = jax.tree.map(np.asarray, (state.generator, state.discriminator))
    return {
        "G_ema": nvidia.from_trees(generator.config, generator.params, generator.buffers),
        "G": nvidia.from_trees(generator.config, parameters[0], generator.buffers),
        "D": nvidia.from_trees(recipe.discriminator, parameters[1], {}),
    }


def write_network(
    workdir: Path,
    generator: Generator,
    config: Config,
    mixture: batches.Mixture,
    measured: dict[str, float],
) -> None:
    """Writes workdir/generator: what `load_generator` takes, and whom it has seen."""
    network = nvidia.from_trees(generator.config, generator.params, generator.buffers)
    people: set[str] = set()
    for part in mixture.records:
        people |= {str(who) for who in part.columns["subject_id"] if who}
    about = {
        "task": config.task,
        "classes": list(TASKS[config.task]) if config.model.conditional else [],
        "measured": measured,
        # What the audit of leaks reads.
        "saw": [{"dataset": part.name, "split": part.split} for part in mixture.records],
        "subjects": sorted(people),
        "training": json.loads(to_json(config)),
    }
    convert.write_networks(workdir / FOLDER, {"G_ema": network}, about)


def _summary(
    config: Config, recipe: Recipe, mixture: batches.Mixture, state: State, mesh: Mesh, steps: int
) -> str:
    def count(tree: Any) -> int:
        return sum(x.size for x in jax.tree.leaves(tree))

    counts = mixture.targets.sum(axis=0).astype(int)
    classes = ", ".join(f"{n} {c}" for n, c in zip(TASKS[config.task], counts, strict=True))
    asked = f"classes: {classes}" if recipe.generator.mapping.c_dim else "without classes"
    lines = [
        f"generator {count(state.generator):,} parameters, discriminator "
        f"{count(state.discriminator):,}; {config.model.image_size} px, {asked}",
        f"{len(mixture)} images; {steps} steps of {config.batch_size} on {mesh.size} "
        f"{jax.devices()[0].platform} device(s); R1 {recipe.r1_gamma:.3g}",
    ]
    return "\n".join(lines)
