"""The training of a generator (StyleGAN2-ADA): records in, a network and its measures out.

Read `train` from top to bottom: data, networks, the parts of a step, and the plan for the loop.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import count_parameters
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fer_jax import checkpoints, compilations, distributed
from fer_jax.config import Config, check_fields, read_config, to_json
from fer_jax.data import batches, provenance
from fer_jax.data.augment import normalize
from fer_jax.data.experiment import open_trained
from fer_jax.errors import InputError, did_you_mean
from fer_jax.fields import GENERATOR
from fer_jax.media.images import is_grey
from fer_jax.models.stylegan2 import DiscriminatorConfig, GeneratorConfig, MappingConfig
from fer_jax.models.xception import grey
from fer_jax.schema import TASKS
from fer_jax.sharding import (
    batch_sharding,
    check_batch_size,
    describe_devices,
    make_mesh,
    replicated,
    with_shardings,
)
from fer_jax.synthesis.generator import Generator, generator_fingerprint, load_generator
from fer_jax.training import ada, gan_measures, gan_step, loop, memory, start
from fer_jax.training.gan_step import Recipe, State
from fer_jax.training.loop import Plan, Validated
from fer_jax.training.start import Run
from fer_jax.training.validation import History, is_over
from fer_jax.weights import convert, nvidia

MIN_CLASS_IMAGES = 50
# The published limit of activations, for dtypes with a short range.
CLAMP = 256.0
CHANGEABLE = (
    *("test_sets", "allow_leaks", "allow_unknown_people", "num_images", "log_every_steps"),
    *("keep_checkpoints", "profile", "input", "measure.images", "measure.features"),
)
# Fields of the config that a recipe has under the same name.
RECIPE_FIELDS = ("batch_size", "learning_rate", "r1_interval", "path_weight", "path_interval")
RECIPE_FIELDS += ("style_mixing", "class_weight", "average_images", "average_rampup")
METRIC = "kid"
FOLDER = "generator"  # of a workdir

Step = Callable[..., tuple[State, dict[str, jax.Array]]]


# The parts of a step in their order; the first two see images.
SEE_IMAGES = {"discriminator": gan_step.discriminator_step, "r1": gan_step.r1_step}
SEE_NONE = {"generator": gan_step.generator_step, "path": gan_step.path_step}
PARTS = SEE_IMAGES | SEE_NONE


def check_generator(config: Config) -> Config:
    """Refuses a config that no generator can be trained with."""
    check_fields(config, GENERATOR)
    for name in config.augment.groups:
        if name not in ada.GROUPS:
            hint = did_you_mean(name, ada.GROUPS)
            raise InputError(f"config.augment.groups cannot have '{name}'{hint}")
    if config.class_weight and not config.model.conditional:
        raise InputError(
            f"config.class_weight is {config.class_weight} and config.model.conditional is false; "
            "set the first to 0 or the second to true"
        )
    if config.measure.images < gan_measures.MIN_IMAGES:
        raise InputError(
            f"config.measure.images must be at least {gan_measures.MIN_IMAGES}, got "
            f"{config.measure.images}"
        )
    recipe = recipe_of(config)
    if config.freeze_blocks >= len(recipe.discriminator.resolutions):
        raise InputError(
            f"config.freeze_blocks must be below {len(recipe.discriminator.resolutions)}, the "
            f"number of the discriminator's blocks, got {config.freeze_blocks}"
        )
    return config


def recipe_of(config: Config) -> Recipe:
    """Returns a training's networks and constants; InputError if no network has such sizes."""
    model = config.model
    num_classes = len(TASKS[config.task]) if model.conditional else 0
    shared = {
        "resolution": model.image_size,
        "channel_base": model.channel_base,
        "channel_max": model.channel_max,
        "conv_clamp": None if model.dtype == "float32" else CLAMP,
    }

    def mapping(z_dim: int, width: int) -> MappingConfig:
        return MappingConfig(
            z_dim=z_dim,
            c_dim=num_classes,
            w_dim=width,
            num_layers=model.mapping_layers,
            embed_features=width,
            layer_features=width,
        )

    generator = GeneratorConfig(mapping=mapping(model.latent_dim, model.latent_dim), **shared)
    discriminator = DiscriminatorConfig(
        # As wide as the last features, which are projected onto it.
        mapping=mapping(0, generator.channels(4)) if num_classes else None,
        mbstd_group_size=math.gcd(4, config.batch_size),
        **shared,
    )
    return Recipe(
        generator=generator,
        discriminator=discriminator,
        r1_gamma=config.r1_gamma or gan_step.r1_gamma(model.image_size, config.batch_size),
        augment_groups=tuple(config.augment.groups),
        augment_target=config.augment.target,
        augment_images=config.augment.images,
        frozen_layers=config.freeze_blocks,
        dtype=model.dtype,
        **{name: config[name] for name in RECIPE_FIELDS},
    )


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains a generator, or resumes what is in `workdir`, until it saw the config's images.

    The workdir receives config.json, environment.json, metrics.jsonl, tensorboard/, checkpoints/,
    samples/ (a grid of the same faces each time), and generator/, the network of the best measures
    as `load_generator` and `synthesize` take it. The datasets were built in `data_dir`.

    Returns the best measures: {"step", "kid", "frechet", "precision", "recall", ...}. Raises as
    `classifier.train`.
    """
    with start.open_run(config, workdir, data_dir, changeable=CHANGEABLE) as run:
        # Path lengths are measured on half of a batch.
        check_batch_size(config.batch_size, 2 if config.path_weight else 1, run.mesh)
        recipe = dataclasses.replace(recipe_of(config), mesh=run.mesh)
        networks = _start_networks(config, recipe) if config.init_from else {}
        if networks:
            own, other = networks["G"].config, networks["D"].config
            recipe = dataclasses.replace(recipe, generator=own, discriminator=other)
        if not run.last:
            check_images(run.mixture, config)
        num_steps = -(-config.num_images // config.batch_size)
        profiled = loop.profiled_steps(config.profile, num_steps=num_steps)
        if is_over(run.history, run.last, num_steps):
            print(f"'{workdir}' is finished: nothing to do after step {run.last}")
            return best_of(run.history)
        history, _ = loop.train(run, _plan(run, recipe, networks, num_steps, profiled))
        return best_of(history)


def _plan(
    run: Run, recipe: Recipe, networks: dict[str, nvidia.Network], num_steps: int, profiled: range
) -> Plan:
    """Compiles the programs of a run, writes its inputs, and plans its loop."""
    config = run.config
    if distributed.is_first():
        start.write_inputs(run)
    init_key, step_key = start.make_keys(run)
    init = functools.partial(gan_step.init_state, recipe=recipe)
    target = _target(recipe, run.mesh)
    parts = _compile(run, recipe, target, step_key, num_steps)
    judge = gan_measures.open_judge(config, run.mixture)

    def first_state() -> State:
        sharding = jax.tree.map(lambda x: x.sharding, target)
        state = jax.jit(init, out_shardings=sharding)(init_key)
        if not networks:
            return state
        print(f"started from {config.init_from}")
        return jax.device_put(_with_networks(state, networks), sharding)

    return Plan(
        num_steps=num_steps,
        validate_every=max(1, round(config.measure.every_images / config.batch_size)),
        metric=METRIC,
        profiled=profiled,
        free_bytes=distributed.smallest(memory.free_bytes()),
        target=target,
        init=first_state,
        step=lambda state, batch, number: _step(parts, recipe, state, batch, step_key, number),
        summarize=lambda rows, reached, _: (
            _means(rows) | {"images": float(reached * config.batch_size)}
        ),
        validate=functools.partial(_measure, run=run, recipe=recipe, judge=judge),
        summary=_summary(run, recipe, target, num_steps),
        advice="Lower config.learning_rate, or raise config.r1_gamma",
    )


def _measure(
    state: State,
    history: History,
    number: int,
    *,
    run: Run,
    recipe: Recipe,
    judge: gan_measures.Judge,
) -> Validated:
    """Writes a grid, measures the generator, and writes it if it is the best so far."""
    found, images = np.zeros(len(gan_measures.NAMES)), {}
    generator = generator_of(state, recipe)
    first = distributed.is_first()
    if first:
        grid = gan_measures.write_grid(run.workdir, number, generator, run.config.task)
        images = {"faces": grid[None]}
        measured = judge(generator)
        found[:] = [measured[name] for name in gan_measures.NAMES]
    if jax.process_count() > 1:
        found = multihost_utils.broadcast_one_to_all(found)
    row: dict[str, float] = dict(zip(gan_measures.NAMES, map(float, found), strict=True))
    following = [*history, {"step": number} | row]
    if first and best_of(following)["step"] == number:
        write_network(run, generator, following[-1])
    line = gan_measures.line(number, following, METRIC, run.config.measure.features)
    return Validated(state, row, line, images=images)


def best_of(history: History) -> dict[str, float]:
    """Returns the measures of the network that generator/ holds."""
    best = checkpoints.best_step(history, METRIC)
    return next(row for row in history if row["step"] == best)


def check_images(mixture: batches.Mixture, config: Config) -> None:
    """Refuses training images of which a generator cannot learn."""
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
    places = zip(mixture.source.tolist(), mixture.row.tolist(), strict=True)
    grey_ones = np.asarray([is_grey(mixture.records[part].image(row)) for part, row in places])
    if grey_ones.any() and not grey_ones.all():
        which = [
            f"{part.name} {np.mean(grey_ones[mixture.source == index]):.0%} grey"
            for index, part in enumerate(mixture.records)
        ]
        raise InputError(
            f"grey and coloured images are mixed ({', '.join(which)}), and the network would learn "
            "to tell sources apart; set config.grayscale=true, or train on one kind"
        )


def _start_networks(config: Config, recipe: Recipe) -> dict[str, nvidia.Network]:
    """Reads the networks of config.init_from, "G", "G_ema" and "D", which must fit the config."""
    path = Path(config.init_from)
    if not path.exists():
        raise InputError(f"config.init_from '{path}' does not exist")
    of_run = (path / checkpoints.FOLDER).is_dir()
    networks = _of_run(path) if of_run else convert.read_networks(path)
    if "D" not in networks or not networks.keys() & {"G", "G_ema"}:
        raise InputError(
            f"config.init_from '{path}' has {', '.join(networks)}: a generator and its "
            "discriminator D are needed"
        )
    networks.setdefault("G_ema", networks.get("G") or networks["G_ema"])
    networks.setdefault("G", networks["G_ema"])
    own, other = recipe.generator, networks["G"].config
    assert isinstance(other, GeneratorConfig)
    for what, expected, found in (
        ("pixels a side", own.resolution, other.resolution),
        ("classes", own.mapping.c_dim, other.mapping.c_dim),
        ("image channels", own.img_channels, other.img_channels),
    ):
        if expected != found:
            raise InputError(
                f"config.init_from '{path}' has {found} {what}, and the config {expected}"
            )
    return networks


def _of_run(workdir: Path) -> dict[str, nvidia.Network]:
    recipe = recipe_of(check_generator(read_config(workdir, of_generator=True)))
    step = max(checkpoints.finished_steps(workdir), default=0)
    if not step:
        raise InputError(f"config.init_from '{workdir}' holds no finished checkpoint")
    network, rest = _target(recipe, make_mesh()).split()
    network, rest = checkpoints.read(workdir, step, network=network, training=rest)
    return networks_of(State.merge(network, rest), recipe)


def _with_networks(state: State, networks: dict[str, nvidia.Network]) -> State:
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


def _target(recipe: Recipe, mesh: Mesh) -> State:
    init = functools.partial(gan_step.init_state, recipe=recipe)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return with_shardings(shapes, jax.tree.map(lambda _: replicated(mesh), shapes))


def jit_parts(
    recipe: Recipe, sharding: State, mesh: Mesh, *, grayscale: bool = False, flip: bool = True
) -> dict[str, Step]:
    """Jits `PARTS`: (state, which is donated, {"image": uint8, "target": float32}, key).

    `grayscale` leaves out the images' colours, and `flip` mirrors half of the images.
    """
    conditional = bool(recipe.generator.mapping.c_dim)

    def part(name: str) -> Step:
        def run(state: State, batch: dict[str, jax.Array], key: jax.Array) -> Any:
            flip_key, key = jax.random.split(key)
            classes = batch["target"] if conditional else None
            if name in SEE_NONE:
                return SEE_NONE[name](state, classes, key, recipe=recipe)
            images = normalize(batch["image"])
            if grayscale:
                images = grey(images)
            if flip:
                mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
                images = jnp.where(mirrored, images[:, :, ::-1], images)
            return SEE_IMAGES[name](state, images, classes, key, recipe=recipe)

        return jax.jit(
            run,
            in_shardings=(sharding, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(sharding, replicated(mesh)),
            donate_argnums=0,
        )

    return {name: part(name) for name in PARTS}


def _compile(
    run: Run, recipe: Recipe, target: State, step_key: jax.Array, num_steps: int
) -> dict[str, Step]:
    """Compiles the parts that are due now, so that the loop can stop after each of its steps."""
    config = run.config
    sharding = jax.tree.map(lambda x: x.sharding, target)
    parts = jit_parts(
        recipe, sharding, run.mesh, grayscale=config.grayscale, flip=config.horizontal_flip
    )
    shapes = batches.shapes(run.mixture, config.batch_size, config.model.image_size)
    compiled = {}
    for name, part in parts.items():
        if any(name in _due(recipe, number) for number in range(run.last + 1, num_steps + 1)):
            with compilations.announce(f"the {name} step"):
                part = part.lower(target, _inputs(shapes), step_key).compile()
        compiled[name] = part
    return compiled


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in ("image", "target")}


def _due(recipe: Recipe, number: int) -> list[str]:
    """Names the parts of step `number`, from 1, in their order."""
    intervals = {
        "discriminator": 1,
        "r1": recipe.r1_interval if recipe.r1_gamma else 0,
        "generator": 1,
        "path": recipe.path_interval if recipe.path_weight else 0,
    }
    return [name for name, every in intervals.items() if every and number % every == 0]


def _step(
    parts: dict[str, Step], recipe: Recipe, state: State, batch: Any, key: jax.Array, number: int
) -> tuple[State, dict[str, jax.Array]]:
    """Does step `number`, from 1, with the lazy parts that are due."""
    keys = jax.random.split(jax.random.fold_in(key, number), len(parts))
    scalars: dict[str, jax.Array] = {}
    for (name, part), part_key in zip(parts.items(), keys, strict=True):
        if name in _due(recipe, number):
            state, more = part(state, _inputs(batch), part_key)
            scalars |= more
    return state, scalars


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Averages each figure over the rows that have it; of the probability takes the last."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    means = {n: float(np.mean([row[n] for row in rows if n in row])) for n in names}
    return means | {n: rows[-1][n] for n in ("augment_p",) if n in means}


def generator_of(state: State, recipe: Recipe) -> Generator:
    """Returns the averaged generator, as `load_generator` does."""
    average, noise, w_average = jax.tree.map(
        np.asarray, (state.average, state.noise, state.w_average)
    )
    buffers = {"noise": noise, "w_avg": w_average.mean(axis=0)}
    return Generator(recipe.generator, average, buffers, recipe.dtype)


def networks_of(state: State, recipe: Recipe) -> dict[str, nvidia.Network]:
    """Returns the networks that `config.init_from` can start from: "G_ema", "G" and "D"."""
    generator = generator_of(state, recipe)
    parameters = jax.tree.map(np.asarray, (state.generator, state.discriminator))
    return {
        "G_ema": nvidia.from_trees(generator.config, generator.params, generator.buffers),
        "G": nvidia.from_trees(generator.config, parameters[0], generator.buffers),
        "D": nvidia.from_trees(recipe.discriminator, parameters[1], {}),
    }


def write_network(run: Run, generator: Generator, measured: dict[str, float]) -> None:
    """Writes workdir/generator: what `load_generator` takes, and whose faces it was trained on."""
    config, records = run.config, run.mixture.records
    network = nvidia.from_trees(generator.config, generator.params, generator.buffers)
    saw = provenance.merged(
        provenance.of_training(records, run.data_dir), _behind_start(config.init_from, run.data_dir)
    )
    provenance.register(run.data_dir, generator_fingerprint(generator), saw)
    about = {
        "task": config.task,
        "classes": list(TASKS[config.task]) if config.model.conditional else [],
        "measured": measured,
        # Read by the audit for leakage.
        **saw,
        "training": json.loads(to_json(config)),
    }
    convert.write_networks(run.workdir / FOLDER, {"G_ema": network}, about)


@functools.cache
def _behind_start(init_from: str, data_dir: Path) -> dict[str, list[Any]]:
    """Returns what the networks saw that a training starts from."""
    if not init_from:
        return {}
    path = Path(init_from)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    found = [convert.read_about(folder)]
    if (path / checkpoints.FOLDER).is_dir():
        # What it was trained on, even before it had measured a network.
        experiment = open_trained(read_config(path, of_generator=True), data_dir, path)
        found.append(provenance.of_training(experiment.train if experiment else [], data_dir))
    else:
        network = generator_fingerprint(load_generator(folder))
        found.append(provenance.registered(data_dir, network))
    known = provenance.merged(*found)
    if not known["saw"] and not known["subjects"]:
        known["unknown"] = [f"the network {path.name} that the generator started from"]
    return known


def _summary(run: Run, recipe: Recipe, target: State, num_steps: int) -> str:
    config, mixture = run.config, run.mixture
    counts = mixture.targets.sum(axis=0).astype(int)
    classes = ", ".join(f"{n} {c}" for n, c in zip(TASKS[config.task], counts, strict=True))
    conditional = f"classes: {classes}" if recipe.generator.mapping.c_dim else "without classes"
    return (
        f"generator {count_parameters(target.generator):,} parameters, discriminator "
        f"{count_parameters(target.discriminator):,}; {config.model.image_size} px, {conditional}\n"
        f"{len(mixture)} images; {num_steps} steps of {config.batch_size} on "
        f"{describe_devices(run.mesh)}; R1 {recipe.r1_gamma:.3g}"
    )
