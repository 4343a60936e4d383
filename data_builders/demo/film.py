"""Films of rendered people who watch advertisements.

A person is filmed in a setting (a room, its light, a camera) of a platform, and passes from
neutral to an expression and back, moves the head and blinks. The face is drawn a few times for a
clip and shaded as a relief; each frame turns the nearest drawing by the depth of the head.

The platforms differ as sources of such videos do, in what a person there does and in what a
camera there shows, and in nothing else:

laboratory: alone before a screen, so expressions are mild; a fixed camera, steady light from the
    front, a plain wall, weak compression.
social: people who play to an audience, so expressions are strong; a telephone that is held by
    hand, rooms, light of any direction and colour that changes, lettering, a picture of the
    advertisement, strong compression, sometimes a second face or a cut.
calls: people at their desks who talk to a laptop; the camera looks up at them, the screen lights
    them from lower down, the picture is dark, noisy and blocky, and the background is blurred.

Each number of a platform is a range, from which every setting or person samples.
"""

import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from data_builders.demo import draw
from data_builders.demo.draw import Expression, Identity
from data_builders.demo.rooms import advertisement, room

FPS = 6
NUM_FRAMES = 12  # of one reaction, which lasts two seconds
ALL = range(NUM_FRAMES)
DRAWN = 96  # half the side of a drawn head, in pixels
LEVELS = 4  # drawings between neutral and the expression
BLINK = -1.0  # of the lids
OPEN = 0.65  # of the mouth that is drawn at most
DARKEST_SKIN, DARK_SKIN = 270, 390  # sums of red, green and blue
GREY_AGE = 60  # years
# Of a reaction: it begins, is there, begins to fade, is over.
ONSET, APEX, FADING, OVER = 0.0, 0.25, 0.85, 1.05

Range = tuple[float, float]


class Platform(NamedTuple):
    """How people are filmed somewhere.

    Attributes:
      width, height: of the frames, in pixels.
      intensity: of expressions at their apex.
      head: side of the drawn head, as a share of the frame's smaller side.
      off_centre: of the head, as a share of its side.
      turn_degrees: of the head, about 0; `pitch_degrees` is where it points, up is negative.
      shake: of the camera, as a share of the head's side.
      light_x, light_y: where the light comes from, 0 is from the front, y down.
      ambient: share of the light that comes from everywhere.
      tint: how much coloured light colours the face.
      flicker: share by which the light changes in a clip.
      exposure, contrast: of the camera, as factors.
      noise: of the camera, in grey levels.
      quality: of the pictures' compression (JPEG) before the film's own.
      background_blur: standard deviation, in pixels.
      second_face, cut, lettering, inset: share of the settings (of the reactions, for a cut).
    """

    width: int
    height: int
    background: str
    intensity: Range
    head: Range
    off_centre: float
    turn_degrees: float
    pitch_degrees: Range
    shake: Range
    light_x: Range
    light_y: Range
    ambient: Range
    tint: Range
    flicker: Range
    exposure: Range
    contrast: Range
    noise: Range
    quality: tuple[int, int]
    background_blur: Range
    second_face: float = 0.0
    cut: float = 0.0
    lettering: float = 0.0
    inset: float = 0.0


PLATFORMS = {
    "laboratory": Platform(
        width=256,
        height=192,
        background="wall",
        intensity=(0.5, 0.95),
        head=(0.82, 0.92),
        off_centre=0.02,
        turn_degrees=5.0,
        pitch_degrees=(-2.0, 2.0),
        shake=(0.0, 0.0),
        light_x=(-0.25, 0.25),
        light_y=(-0.6, -0.3),
        ambient=(0.6, 0.7),
        tint=(0.0, 0.06),
        flicker=(0.0, 0.0),
        exposure=(0.97, 1.05),
        contrast=(0.97, 1.03),
        noise=(1.0, 2.0),
        quality=(85, 95),
        background_blur=(1.0, 2.0),
    ),
    "social": Platform(
        width=192,
        height=256,
        background="room",
        intensity=(0.6, 1.2),
        head=(0.8, 1.15),
        off_centre=0.07,
        turn_degrees=9.0,
        pitch_degrees=(-6.0, 6.0),
        shake=(0.004, 0.02),
        light_x=(-1.2, 1.2),
        light_y=(-1.0, 0.3),
        ambient=(0.4, 0.65),
        tint=(0.1, 0.45),
        flicker=(0.0, 0.15),
        exposure=(0.75, 1.25),
        contrast=(0.85, 1.2),
        noise=(2.0, 8.0),
        quality=(25, 65),
        background_blur=(0.8, 3.0),
        second_face=0.15,
        cut=0.3,
        lettering=0.4,
        inset=0.5,
    ),
    "calls": Platform(
        width=256,
        height=192,
        background="desk",
        intensity=(0.45, 1.0),
        head=(0.8, 1.0),
        off_centre=0.06,
        turn_degrees=6.0,
        pitch_degrees=(-8.0, -2.0),
        shake=(0.0, 0.002),
        light_x=(-0.5, 0.5),
        light_y=(-0.2, 0.35),
        ambient=(0.5, 0.65),
        tint=(0.1, 0.35),
        flicker=(0.0, 0.1),
        exposure=(0.75, 1.0),
        contrast=(0.85, 1.05),
        noise=(3.0, 7.0),
        quality=(25, 50),
        background_blur=(4.0, 8.0),
    ),
}


class Setting(NamedTuple):
    """Where and how one person is filmed; the same in all reactions of a video."""

    platform: Platform
    content: str
    background: np.ndarray  # float32 RGB [height + 2 MARGIN, width + 2 MARGIN, 3]
    size: float  # of the drawn head, pixels
    place: tuple[float, float]  # of its centre, pixels
    pitch_degrees: float
    shake: float
    light: tuple[float, float]
    ambient: float
    tint: np.ndarray  # factors, float32 [3]
    flicker: float
    exposure: float
    contrast: float
    noise: np.ndarray  # float32 [height, 2 width, 3], of which a frame takes a part
    quality: int
    lettering: str
    inset: np.ndarray | None
    other: tuple[np.ndarray, np.ndarray] | None  # a second person, as `_head_in` shows it


class Frame(NamedTuple):
    """A frame, uint8 RGB, and where the face is: its centre and the distance of the eyes."""

    image: np.ndarray
    centre: tuple[float, float]
    eyes: float
    shown: float  # share of the expression, 0 to 1


def person(rng: np.random.Generator) -> Identity:
    """Samples a person, whose hair is dark where the skin is.

    The skin is as a camera shows it that exposes for the face; the cascade misses darker ones.
    """
    who = draw.identity(rng)
    lift = max(1.0, DARKEST_SKIN / sum(who.skin))
    who.skin = tuple(round(value * lift) for value in who.skin)
    if sum(who.skin) < DARK_SKIN and who.hair_style != draw.BALD and who.age < GREY_AGE:
        who.hair = draw.HAIR[int(rng.integers(0, 2))]
    return who


MARGIN = 24  # of the background around the frame, by which the camera may shake


def setting(name: str, who: Identity, content: str, rng: np.random.Generator) -> Setting:
    """Samples where a person is filmed on one of `PLATFORMS` while watching a kind of content."""
    p = PLATFORMS[name]
    size = rng.uniform(*p.head) * min(p.width, p.height)
    x, y = rng.uniform(-1, 1, 2) * p.off_centre * size
    # Of a low frame the head fills the height, in a high one it is above the middle.
    middle = 0.53 if p.width > p.height else 0.46
    place = (p.width / 2 + x, max(p.height * middle, 0.5 * size) + y)
    screen = np.asarray(draw.CONTENT_LIGHT[content], np.float32) / 200
    lamp = np.asarray([1.0, rng.uniform(0.85, 1.05), rng.uniform(0.7, 1.2)], np.float32)
    tint = 1 + rng.uniform(*p.tint) * (screen * lamp - 1)
    light = (float(rng.uniform(*p.light_x)), float(rng.uniform(*p.light_y)))
    ambient = rng.uniform(*p.ambient)
    whole = (p.width + 2 * MARGIN, p.height + 2 * MARGIN)
    background = _tinted(room(p.background, *whole, rng), 0.5 + 0.5 * tint)
    background = cv2.GaussianBlur(background, (0, 0), rng.uniform(*p.background_blur))
    level = rng.uniform(*p.noise)
    noise = rng.standard_normal((p.height // 2, p.width, 3), np.float32)
    # The noise of a small sensor is coarser than its pixels.
    noise = cv2.resize(noise, (2 * p.width, p.height), interpolation=cv2.INTER_CUBIC) * level
    other = None
    if rng.random() < p.second_face:
        guest, side = person(rng), float(rng.choice([-1, 1]))
        look = draw.expression("neutral", False, 0.0, rng)
        head = _shaded(guest, look.actions, look.gaze, _shading(guest, light, ambient))
        where = (p.width * (0.5 + 0.4 * side), place[1] + 0.1 * size)
        other = _head_in(p, head, 0.5 * size, where, look.roll_degrees)
    words = ["LIVE", "wow", "new!", "AD", "#fyp", "my reaction", "part 2"]
    return Setting(
        platform=p,
        content=content,
        background=background,
        size=size,
        place=place,
        pitch_degrees=rng.uniform(*p.pitch_degrees),
        shake=rng.uniform(*p.shake),
        light=light,
        ambient=ambient,
        tint=tint.astype(np.float32),
        flicker=rng.uniform(*p.flicker),
        exposure=rng.uniform(*p.exposure),
        contrast=rng.uniform(*p.contrast),
        noise=noise,
        quality=int(rng.integers(*p.quality)),
        lettering=str(rng.choice(words)) if rng.random() < p.lettering else "",
        inset=advertisement(content, rng) if rng.random() < p.inset else None,
        other=other,
    )


def film(
    who: Identity,
    emotion: str,
    interested: bool,
    where: Setting,
    rng: np.random.Generator,
    wanted: Collection[int] = ALL,
) -> Iterator[Frame]:
    """Films a reaction of a person.

    Args:
      who: the person.
      emotion: one of `draw.EMOTION_ACTIONS`, at its apex in the middle of the reaction.
      interested: looks at the screen and leans in, or looks away.
      where: the setting.
      rng: for what differs between reactions in one setting.
      wanted: the frames to film, of `ALL`; the others cost next to nothing.

    Yields:
      The frames.
    """
    p = where.platform
    calm = draw.expression("neutral", interested, 0.0, rng)
    apex = draw.expression(emotion, interested, rng.uniform(*p.intensity), rng)
    shading = _shading(who, where.light, where.ambient)

    @functools.cache
    def head(level: int, blink: bool) -> np.ndarray:
        t = level / (LEVELS - 1)
        actions = {
            name: (1 - t) * calm.actions[name] + t * apex.actions[name] for name in draw.ACTIONS
        }
        actions["open"] *= OPEN
        if blink:
            actions["lids"] = BLINK
        return _shaded(who, actions, apex.gaze, shading)

    depth = _depth(who)
    away = 0.0 if interested else 8.0 * np.sign(apex.gaze[0])
    yaw = away + _wander(p.turn_degrees, rng)
    pitch = where.pitch_degrees + _wander(0.6 * p.turn_degrees, rng)
    roll = apex.roll_degrees + _wander(0.4 * p.turn_degrees, rng)
    sway = _wander(0.02 * where.size, rng)
    shake = np.cumsum(rng.normal(0, where.shake * where.size, (NUM_FRAMES, 2)), axis=0)
    shake = np.clip(shake - shake.mean(axis=0), -MARGIN, MARGIN)
    brightness = 1 + _wander(where.flicker, rng)
    blinks = set(rng.integers(0, NUM_FRAMES, 1).tolist())
    # Before a cut the camera was a little further away.
    cut = int(rng.integers(3, NUM_FRAMES // 2)) if rng.random() < p.cut else 0
    peak = _course()
    starts = rng.integers(0, p.width, NUM_FRAMES)  # of the noise
    for index in wanted:
        drawing = head(round(peak[index] * (LEVELS - 1)), index in blinks)
        turned = _turned(drawing, depth, yaw[index], pitch[index])
        size = where.size * apex.lean * (0.85 if index < cut else 1.0)
        centre = (where.place[0] + sway[index] + shake[index, 0], where.place[1] + shake[index, 1])
        layers = _head_in(p, turned, size, centre, roll[index])
        image = _camera(where, layers, shake[index], float(brightness[index]), int(starts[index]))
        yield Frame(image, centre, size * who.eye_distance, float(peak[index]))


def _course() -> np.ndarray:
    """How much of the expression each frame shows."""
    t = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES
    return np.interp(t, [ONSET, APEX, FADING, OVER], [0.0, 1.0, 1.0, 0.0])


def _wander(size: float, rng: np.random.Generator) -> np.ndarray:
    """A slow motion about 0 of about this size, [NUM_FRAMES]."""
    t = np.arange(NUM_FRAMES) / FPS
    slow, fast = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)
    phases = rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(2 * np.pi * slow * t + phases[0]) + 0.4 * np.sin(
        2 * np.pi * fast * t + phases[1]
    )
    return size * rng.uniform(0.4, 1.0) * waves


@functools.lru_cache(maxsize=1)
def _canvas_grid() -> tuple[np.ndarray, np.ndarray]:
    """The x and y of a drawn head's pixels in the coordinates of `draw`, float32."""
    side = DRAWN * draw.SUPERSAMPLING
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    return x, y


def _depth(who: Identity) -> np.ndarray:
    """How far the head's surface is before the plane of its outline, in units of `draw`."""
    x, y = _canvas_grid()
    ball = 0.55 * (1 - (x / (1.05 * who.face_width)) ** 2 - ((y - 0.04) / who.face_height) ** 2)
    return np.maximum(ball, 0) + _bumps([(0.0, -0.11 + who.nose_length, 0.07, 0.1, 0.14)])


def _bumps(bumps: list[tuple[float, float, float, float, float]]) -> np.ndarray:
    """Sums Gaussians of (x, y, width, height, size)."""
    x, y = _canvas_grid()
    total = np.zeros_like(x)
    for x0, y0, width, height, size in bumps:
        # A Gaussian of two dimensions is the product of two of one.
        across = np.exp(-(((x[0] - x0) / width) ** 2))
        down = np.exp(-(((y[:, 0] - y0) / height) ** 2))
        total += size * np.outer(down, across)
    return total


def _shading(who: Identity, light: tuple[float, float], ambient: float) -> np.ndarray:
    """Brightness of the head's surface in a light, as factors, float32 [side, side, 1]."""
    x, y = _canvas_grid()
    tip, mouth, eye = -0.11 + who.nose_length, who.mouth_height, who.eye_distance
    chin = 0.04 + 0.84 * who.face_height
    radius = (x / (1.1 * who.face_width)) ** 2 + ((y - 0.0) / (1.1 * who.face_height)) ** 2
    surface = 0.5 * np.maximum(1 - radius, -0.2)
    surface = surface + _bumps(
        [
            (0.0, 0.02, 0.055, 0.16, 0.05),
            (0.0, tip, 0.08, 0.06, 0.07),
            (0.0, mouth, 0.17, 0.06, 0.03),
            (0.0, mouth + 0.14, 0.12, 0.04, -0.025),
            (0.0, chin, 0.13, 0.1, 0.04),
            (0.0, -0.45, 0.3, 0.15, 0.03),
            *((side * eye, -0.11, 0.12, 0.075, -0.04) for side in (-1, 1)),
            *((side * (eye + 0.08), 0.14, 0.15, 0.12, 0.04) for side in (-1, 1)),
            *((side * 0.2, -0.25, 0.17, 0.05, 0.025) for side in (-1, 1)),
        ]
    )
    surface = cv2.GaussianBlur(surface, (0, 0), 3)
    step = x[0, 1] - x[0, 0]
    slope_y, slope_x = np.gradient(surface, step)
    towards = np.asarray([*light, 1.0]) / np.linalg.norm([*light, 1.0])
    norm = np.sqrt(1 + slope_x**2 + slope_y**2)
    lambert = np.maximum(0, -slope_x * towards[0] - slope_y * towards[1] + towards[2]) / norm
    gloss = 0.12 * lambert**24
    # Less light reaches hollows.
    hollows = [
        *((side * eye, -0.13, 0.16, 0.1, 0.6) for side in (-1, 1)),
        *((side * 0.09, -0.1, 0.05, 0.1, 0.26) for side in (-1, 1)),
        (0.0, tip + 0.06, 0.1, 0.03, 0.2),
        (0.0, mouth + 0.13, 0.12, 0.035, 0.15),
        *((side * 0.33, 0.12, 0.13, 0.1, -0.2) for side in (-1, 1)),  # cheeks catch light
    ]
    lit = (ambient + (1.15 - ambient) * lambert) * (1 - np.minimum(_bumps(hollows), 0.65))
    return (lit + gloss)[..., None].astype(np.float32)


@functools.lru_cache(maxsize=1)
def _grain() -> tuple[np.ndarray, np.ndarray]:
    """The texture of skin and of hair, as factors, float32 [side, side, 1]."""
    rng = np.random.default_rng(0)
    side = DRAWN * draw.SUPERSAMPLING
    fine, strands = rng.standard_normal((2, side, side), np.float32)
    skin = cv2.GaussianBlur(fine, (0, 0), 1.5) * 0.05 + cv2.GaussianBlur(fine, (0, 0), 12) * 0.4
    hair = cv2.GaussianBlur(strands, (0, 0), sigmaX=1.0, sigmaY=14) * 0.9
    return 1 + skin[..., None], 1 + np.clip(hair, -0.3, 0.3)[..., None]


def _shaded(
    who: Identity,
    actions: dict[str, float],
    gaze: tuple[float, float],
    shading: np.ndarray,
) -> np.ndarray:
    """Draws a head in its light: RGB that is multiplied by coverage, and coverage; float32."""
    pixels, covered = draw.draw_head(who, Expression(actions, gaze, 0, 1), DRAWN, stubble=True)
    skin, hair = _grain()
    darkest, lightest = ([value + step for value in who.hair] for step in (-2, 2))
    is_hair = cv2.inRange(pixels, tuple(darkest), tuple(lightest))[..., None] > 0
    colours = cv2.GaussianBlur(pixels, (0, 0), 0.8) * np.where(is_hair, hair, skin) * shading
    # The outermost pixels are blended with what marks the surroundings.
    inside = cv2.erode(covered.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    alpha = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0)[..., None]
    alpha[:2] = 0  # `_head_in` repeats the border
    return np.concatenate([np.clip(colours, 0, 255) * alpha, alpha], axis=-1)


def _turned(head: np.ndarray, depth: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Turns a drawn head to the right and down: what is nearer moves further."""
    side = len(head)
    rows, columns = _pixel_grid(side)
    moved = depth * (side / 2)
    return cv2.remap(
        head,
        columns - np.float32(np.sin(np.radians(yaw))) * moved,
        rows - np.float32(np.sin(np.radians(pitch))) * moved,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


@functools.lru_cache(maxsize=2)
def _pixel_grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return rows, columns


def _head_in(
    platform: Platform,
    head: np.ndarray,
    size: float,
    centre: tuple[float, float],
    roll_degrees: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Places a drawn head in a frame: RGB and coverage, both float32 [height, width, 3]."""
    middle = (len(head) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), roll_degrees, size / len(head))
    matrix[:, 2] += np.asarray(centre) - middle
    # The shoulders go on below the drawing.
    placed = cv2.warpAffine(
        head,
        matrix,
        (platform.width, platform.height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.cvtColor(placed, cv2.COLOR_RGBA2RGB), cv2.merge([placed[..., 3]] * 3)


def _tinted(colours: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Multiplies colours, [h, w, 3], by a factor each, [3]."""
    # NumPy repeats so short an array three times slower.
    return cv2.multiply(colours, np.append(tint, 0).astype(np.float64))


def _camera(
    where: Setting,
    head: tuple[np.ndarray, np.ndarray],
    shake: np.ndarray,
    brightness: float,
    start: int,
) -> np.ndarray:
    """Takes a frame of a head in its setting: uint8 RGB [height, width, 3].

    `start` is the column at which the frame's part of the noise begins.
    """
    p = where.platform
    x, y = (MARGIN - np.round(shake)).astype(int)
    image = where.background[y : y + p.height, x : x + p.width]
    for colours, covered in filter(None, (where.other, head)):
        image = image * (1 - covered)
        image += _tinted(colours, where.tint)
    gain = where.contrast * where.exposure * brightness
    image = cv2.addWeighted(
        *(image, gain, where.noise[:, start : start + p.width], 1.0),
        *(128 * where.exposure * (1 - where.contrast), None, cv2.CV_8U),
    )
    blur = 2 * int(np.abs(shake).max() / 12) + 1
    if where.shake and blur > 1:
        image = cv2.blur(image, (blur, 1))
    if where.inset is not None:
        height, width = where.inset.shape[:2]
        image[6 : 6 + height, p.width - width - 6 : p.width - 6] = where.inset
    if where.lettering:
        for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            place, font = (8, p.height - 14), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(image, where.lettering, place, font, 0.6, colour, thickness, cv2.LINE_AA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, where.quality]
    _, compressed = cv2.imencode(".jpg", image[..., ::-1], quality)
    return np.asarray(cv2.imdecode(compressed, cv2.IMREAD_COLOR_RGB))
