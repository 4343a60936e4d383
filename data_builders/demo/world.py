"""The rendered world: its people, and their clips as the sources of the study are laid out.

Three platforms (see film.py), and no person is on two of them, or in two worlds:

laboratory: NeuroBioSense's tree, Advertisement Categories/CATEGORY/PARTICIPANT/AD/LETTER/, with its
    spreadsheet. Every participant watches advertisements of one category, as published.
social: one video of each person, with a reaction after the other, and links.csv, whose rows are
    the parts of the videos with their labels.
calls: a folder of clips with manifest.csv; the platform that nobody is trained on.

Every person shows each of the seven emotions once. Interest is as frequent in each category as in
the published laboratory videos. All of it depends on the seed only. In a null world all platforms
look like the laboratory, so that nothing is to be gained from another platform's look.
"""

import concurrent.futures
import hashlib
import io
import multiprocessing
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_builders.demo import draw, film
from data_builders.demo.draw import Identity
from fer_jax import schema, storage
from fer_jax.media.clips import start_worker

# Share of the advertisements that interest, by category: as in the published laboratory videos.
INTERESTED = {"food_market": 0.55, "cosmetics_fashion": 0.65, "car_tech": 0.83}
CATEGORY_FOLDERS = {
    "food_market": "Food and Market",
    "cosmetics_fashion": "Cosmetics and Fashion",
    "car_tech": "Car and Technology",
}
LETTERS = {
    "anger": "A",
    "disgust": "D",
    "fear": "F",
    "happiness": "J",
    "neutral": "N",
    "sadness": "SA",
    "surprise": "SU",
}
ADS_EACH, ADS_PER_CATEGORY = 4, 6  # watched by a participant, and shown
MAX_PEOPLE = 100_000  # of a platform in one world
TABLE = "Participant_demographic_information.xlsx"
TABLE_HEADER = ("RECORD ID", "SUBJECT ID", "GENDER", "AGE", "AD CODE", "INTERESTED IN")
LINK_COLUMNS = (
    *("url", "start_s", "end_s", "category", "emotion", "reaction_type"),
    "subject_id",
)


class Reaction(NamedTuple):
    """What a person shows while watching an advertisement."""

    emotion: str
    interested: bool
    ad: int


class World(NamedTuple):
    """What determines everything that is rendered."""

    seed: int
    null: bool = False  # all platforms look like the laboratory


class Viewer(NamedTuple):
    """A person on a platform, by number, and the reactions in the order of filming."""

    world: World
    platform: str
    number: int
    who: Identity
    content: str
    reactions: tuple[Reaction, ...]

    @property
    def id(self) -> int:
        """Differs between the people of a platform, also of worlds with other seeds."""
        return self.world.seed * MAX_PEOPLE + self.number + 1

    @property
    def name(self) -> str:
        """The id, as folders and files are named."""
        return f"P{self.id:03}"

    def where(self) -> film.Setting:
        """Returns the setting in which the person is filmed."""
        rng = rng_of(self.world.seed, self.platform, str(self.number), "setting")
        look = "laboratory" if self.world.null else self.platform
        return film.setting(look, self.who, self.content, rng)

    def film(
        self, reaction: Reaction, where: film.Setting, wanted: Collection[int] = film.ALL
    ) -> Iterator[film.Frame]:
        """Films the wanted frames of a reaction."""
        rng = rng_of(self.world.seed, self.platform, str(self.number), reaction.emotion)
        return film.film(self.who, reaction.emotion, reaction.interested, where, rng, wanted)


class Video(NamedTuple):
    """A file to render: which reactions of whom it shows."""

    path: Path
    viewer: Viewer
    reactions: tuple[Reaction, ...]


def rng_of(seed: int, *names: str) -> np.random.Generator:
    """Returns a generator that the seed and the names determine."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def viewer(world: World, platform: str, number: int) -> Viewer:
    """Returns the person of a number, below `MAX_PEOPLE`, on one of `film.PLATFORMS`."""
    rng = rng_of(world.seed, platform, str(number))
    who = film.person(rng)
    category = number % len(draw.CONTENTS)
    content = draw.CONTENTS[category]
    first = category * ADS_PER_CATEGORY
    ads = sorted(first + rng.choice(ADS_PER_CATEGORY, ADS_EACH, replace=False))
    interested = {ad: bool(rng.random() < INTERESTED[content]) for ad in ads}
    emotions = rng.permutation(schema.EMOTIONS).tolist()
    watched = [ads[place * ADS_EACH // len(emotions)] for place in range(len(emotions))]
    reactions = [
        Reaction(emotion, interested[ad], int(ad) + 1)
        for emotion, ad in zip(emotions, watched, strict=True)
    ]
    return Viewer(world, platform, number, who, content, tuple(reactions))


def viewers(world: World, platform: str, count: int) -> list[Viewer]:
    """Returns the first people of a platform."""
    return [viewer(world, platform, number) for number in range(count)]


def render(video: Video) -> Path:
    """Writes a video as MPEG-4, unless it is there; returns its path."""
    if not video.path.is_file():
        video.path.parent.mkdir(parents=True, exist_ok=True)
        where = video.viewer.where()
        frames = (
            frame for reaction in video.reactions for frame in video.viewer.film(reaction, where)
        )
        with storage.replacing(video.path, durable=False) as temporary:
            write_video(temporary, frames)
    return video.path


def write_video(file: Path, frames: Iterable[film.Frame]) -> None:
    """Writes frames as MPEG-4."""
    writer = None
    for frame in frames:
        height, width = frame.image.shape[:2]
        if writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(file), code, film.FPS, (width, height))
        writer.write(cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    assert writer is not None  # there are frames
    writer.release()


def render_all(videos: Sequence[Video], processes: int) -> Iterator[Path]:
    """Renders the videos that are not there, in processes; yields each path when it is done."""
    missing = [video for video in videos if not video.path.is_file()]
    yield from (video.path for video in videos if video.path.is_file())
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=start_worker
    ) as pool:
        yield from pool.map(render, missing, chunksize=4)


def laboratory(folder: Path, people: Sequence[Viewer]) -> list[Video]:
    """Writes the spreadsheet of NeuroBioSense's tree; returns the clips that belong there."""
    _write_table(folder / "Participant Data" / TABLE, people)
    return [
        Video(
            folder.joinpath(
                *("Advertisement Categories", CATEGORY_FOLDERS[one.content]),
                *(one.name, f"A{reaction.ad}", LETTERS[reaction.emotion], "1.mp4"),
            ),
            one,
            (reaction,),
        )
        for one in people
        for reaction in one.reactions
    ]


def _write_table(file: Path, people: Sequence[Viewer]) -> None:
    """The participants' table: a row for each advertisement, what is the person's own is merged."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None  # a new book has one
    sheet.append(TABLE_HEADER)
    row = 2
    for one in people:
        watched = {reaction.ad: reaction.interested for reaction in one.reactions}
        for ad, interested in watched.items():
            about = (one.id, one.who.gender.upper(), one.who.age)
            sheet.append((row - 1, *about, f"A{ad}", "YES" if interested else "NO"))
            row += 1
        for column in range(2, 5):
            sheet.merge_cells(
                start_row=row - len(watched),
                end_row=row - 1,
                start_column=column,
                end_column=column,
            )
    data = io.BytesIO()
    book.save(data)
    storage.write_atomically(file, data.getvalue(), durable=False)


def social(folder: Path, people: Sequence[Viewer]) -> list[Video]:
    """Returns the videos of a platform on which everybody has one."""
    return [Video(folder / f"{one.name}.mp4", one, one.reactions) for one in people]


def write_links(file: Path, videos: Sequence[Video], address: str) -> None:
    """Writes links.csv of social videos that are served at an address: a row for each reaction.

    The list is as such lists are: one video is gone, one row is there twice, and one leads to a
    page without a video.
    """
    rows = []
    for video in videos:
        for number, reaction in enumerate(video.reactions):
            start = number * film.NUM_FRAMES / film.FPS
            end = start + film.NUM_FRAMES / film.FPS
            label = schema.INTERESTS[reaction.interested]
            about = (video.viewer.content, reaction.emotion, label, video.viewer.name)
            cells = (f"{address}/{video.path.name}", start, end, *about)
            rows.append(dict(zip(LINK_COLUMNS, cells, strict=True)))
    rows.insert(len(rows) // 2, rows[0])
    rows += [rows[0] | {"url": f"{address}/{name}"} for name in ("gone.mp4", "about.html")]
    storage.write_table(file, LINK_COLUMNS, rows)


def calls(folder: Path, people: Sequence[Viewer]) -> list[Video]:
    """Writes manifest.csv of a folder of clips; returns the clips that belong there."""
    videos = [
        Video(folder / f"{one.name}_{reaction.emotion}.mp4", one, (reaction,))
        for one in people
        for reaction in one.reactions
    ]
    rows = [
        {
            "file": video.path.name,
            "emotion": reaction.emotion,
            "interest": schema.INTERESTS[reaction.interested],
            "subject_id": video.viewer.name,
            "content": video.viewer.content,
            "gender": video.viewer.who.gender,
            "age": video.viewer.who.age,
        }
        for video in videos
        for reaction in video.reactions
    ]
    storage.write_table(folder / "manifest.csv", tuple(rows[0]), rows)
    return videos
