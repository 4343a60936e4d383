"""Write report.html of a run, a study or a generator, and their figures as files.

The page is one file that opens anywhere. Every number on it is in results.json, or for a
generator in metrics.jsonl.
"""

from pathlib import Path

import jinja2

from fer_jax import access_log, figures, results, storage
from fer_jax.config import OneLineParser
from fer_jax.errors import InputError
from fer_jax.report.run_page import generator_figures, generator_page, run_figures, run_page
from fer_jax.report.study_page import study_figures, study_page


def report(workdir: Path, *, faces: bool = True, figure_format: str | None = None) -> Path:
    """Writes workdir/report.html, of an evaluated run, a study or a generator, and returns it.

    `faces` says whether the page may show faces; with `figure_format`, one of `figures.FORMATS`,
    workdir/figures is written too. Raises InputError if there is nothing to report yet; names the
    command that writes it.
    """
    scored = results.read(workdir)
    access_log.read(workdir, (scored or {}).get("test_access_hash"))
    if "num_images" in storage.read_json(workdir / "config.json"):
        page = generator_page(workdir)
        plots = generator_figures(workdir) if figure_format else {}
    elif scored is None:
        verb = "study" if (workdir / "runs").is_dir() else "evaluate"
        raise InputError(f"'{workdir}' has no {results.FILE}; run `fer-jax {verb}` first")
    else:
        is_study = "scenarios" in scored
        try:
            page = (study_page if is_study else run_page)(workdir, scored, faces)
        except (KeyError, IndexError, jinja2.UndefinedError) as error:
            file, verb = workdir / results.FILE, "study" if is_study else "evaluate"
            lacks = f"entries ({error})" if isinstance(error, IndexError) else error
            raise InputError(
                f"'{file}' is of another version: it lacks {lacks}; rerun `fer-jax {verb}`"
            ) from error
        plots = {}
        if figure_format:
            plots = study_figures(scored) if is_study else run_figures(workdir, scored)
    path = workdir / "report.html"
    storage.write_atomically(path, page, durable=False)
    for name, figure in plots.items():
        file = workdir / "figures" / f"{name}.{figure_format}"
        with storage.replacing(file, durable=False) as temporary:
            figures.save(figure, temporary)
    return path


def main(argv: list[str]) -> None:
    """Runs the verb `report`."""
    parser = OneLineParser("fer-jax report", __doc__)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="of an evaluated run, a study or a generator"
    )
    parser.add_argument("--no_faces", action="store_true", help="show no face")
    parser.add_argument(
        "--figures",
        choices=figures.FORMATS,
        help="also write each figure to WORKDIR/figures in this format, for a paper",
    )
    arguments = parser.parse_args(argv)
    page = report(arguments.workdir, faces=not arguments.no_faces, figure_format=arguments.figures)
    print(page.resolve())
