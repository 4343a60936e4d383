"""Renders faces from parameters: a person, an expression and a camera.

Coordinates are in units of half the image, from its centre, y down. Faces are drawn at twice the
size and reduced. All functions depend on their arguments and random generators only.
"""

import functools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np

SUPERSAMPLING = 2
FIXED_POINT = 4  # fractional bits of OpenCV's drawing coordinates
MARK = (1, 1, 1)  # of pixels that are not drawn on

# Facial actions per emotion, after the action units of Ekman and Friesen: inner and outer brow
# raise, brow lowering, lid opening, nose wrinkle, lip corners up or down, mouth opening, lip
# press, mouth widening. Each between -1 and 1, at full intensity.
ACTIONS = ("inner", "outer", "lower", "lids", "nose", "corners", "open", "press", "wide")
EMOTION_ACTIONS = {
    "anger": {"lower": 1.0, "lids": -0.35, "press": 0.9, "corners": -0.25, "inner": -0.4},
    "disgust": {"nose": 1.0, "lower": 0.5, "lids": -0.55, "corners": -0.45, "open": 0.25},
    "fear": {"inner": 1.0, "outer": 0.5, "lids": 0.8, "open": 0.35, "wide": 0.8, "corners": -0.3},
    "happiness": {"corners": 1.0, "lids": -0.3, "open": 0.4, "wide": 0.5},
    "neutral": {},
    "sadness": {"inner": 0.9, "outer": -0.4, "lids": -0.4, "corners": -0.9},
    "surprise": {"inner": 0.8, "outer": 1.0, "lids": 1.0, "open": 1.0, "wide": -0.4},
}
CONTENTS = ("food_market", "cosmetics_fashion", "car_tech")
# The light of the screen on the viewer, by what is advertised (RGB).
CONTENT_LIGHT = {
    "food_market": (255, 170, 90),
    "cosmetics_fashion": (255, 130, 190),
    "car_tech": (110, 170, 255),
}

LIGHT_SKIN, DARK_SKIN = (250, 218, 192), (92, 58, 40)
HAIR = ((30, 24, 22), (62, 40, 26), (104, 68, 38), (196, 156, 92), (150, 66, 34), (150, 150, 152))
GREY_HAIR = 5
EYES = ((70, 44, 26), (96, 66, 34), (84, 110, 78), (84, 124, 160), (104, 116, 124))
GLASSES = (28, 28, 32)
BALD, SHORT, PARTED, LONG, CURLY = range(5)
HAIR_STYLES = {"female": [PARTED, LONG, LONG, CURLY], "male": [BALD, SHORT, SHORT, PARTED, CURLY]}

Colour = tuple[int, int, int]
Identity = SimpleNamespace  # see `identity`


def identity(rng: np.random.Generator) -> Identity:
    """Samples a person: what stays the same in all images; colours are RGB."""
    tone = rng.uniform(0, 1)
    light, dark = np.array(LIGHT_SKIN), np.array(DARK_SKIN)
    skin = light + (dark - light) * tone + rng.normal(0, 5, 3)
    gender = str(rng.choice(["female", "male"]))
    male = gender == "male"
    age = int(rng.integers(18, 72))
    hair = HAIR[GREY_HAIR if age > 55 and rng.random() < 0.6 else int(rng.integers(0, GREY_HAIR))]
    return Identity(
        skin=_colour(skin),
        hair=_colour(np.array(hair) + rng.normal(0, 6, 3)),
        eyes=EYES[int(rng.integers(0, len(EYES)))],
        face_width=rng.uniform(0.50, 0.60),
        face_height=rng.uniform(0.68, 0.78),
        jaw=rng.uniform(0.75, 1.05) + (0.06 if male else 0),
        eye_distance=rng.uniform(0.215, 0.26),
        eye_size=rng.uniform(0.9, 1.12),
        brow_thickness=rng.uniform(0.028, 0.045) + (0.012 if male else 0),
        brow_height=rng.uniform(0.145, 0.18),
        nose_length=rng.uniform(0.25, 0.32),
        nose_width=rng.uniform(0.075, 0.125),
        mouth_width=rng.uniform(0.19, 0.25),
        lip_fullness=rng.uniform(0.8, 1.3) + (0 if male else 0.2),
        mouth_height=rng.uniform(0.36, 0.42),
        hair_style=int(rng.choice(HAIR_STYLES[gender])),
        glasses=bool(rng.random() < 0.18),
        beard=float(rng.uniform(0.3, 1)) if male and rng.random() < 0.35 else 0.0,
        gender=gender,
        age=age,
    )


class Expression(NamedTuple):
    """What the face does: actions by name, and where it looks."""

    actions: dict[str, float]
    gaze: tuple[float, float]  # -1 to 1, right and down
    roll_degrees: float
    lean: float  # size of the head, about 1


def expression(
    emotion: str, interested: bool, intensity: float, rng: np.random.Generator
) -> Expression:
    """Samples how a person shows an emotion and interest.

    Interested people look at the camera and lean in; others look away, with lowered lids and a
    tilted head. An intensity of 0 shows no emotion, 1 all of it.
    """
    shown = EMOTION_ACTIONS[emotion]
    actions = {name: intensity * shown.get(name, 0.0) + rng.normal(0, 0.07) for name in ACTIONS}
    if interested:
        gaze = rng.normal(0, 0.13, 2)
        roll, lean = rng.normal(0, 2.0), rng.uniform(1.0, 1.06)
    else:
        side = rng.choice([-1.0, 1.0])
        gaze = np.array([side * rng.uniform(0.5, 1.0), rng.uniform(-0.1, 0.6)])
        roll, lean = side * rng.uniform(2, 8), rng.uniform(0.93, 1.0)
        actions["lids"] -= 0.22
    return Expression(actions, (float(gaze[0]), float(gaze[1])), float(roll), float(lean))


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    return _colour(np.array(colour) * factor)


def _blend(a: Colour, b: Colour, t: float) -> Colour:
    return _colour(np.array(a) * (1 - t) + np.array(b) * t)


class _Canvas:
    """Pixels to draw on in the module's coordinates; OpenCV takes fixed-point pixels."""

    def __init__(self, size: int):
        self.size = size * SUPERSAMPLING
        self.pixels = np.zeros((self.size, self.size, 3), np.uint8)

    def points(self, points: np.ndarray | Sequence) -> np.ndarray:
        pixels = (np.asarray(points, np.float64) + 1) * self.size / 2
        return np.round(pixels * 2**FIXED_POINT).astype(np.int32)

    def fill(self, points: np.ndarray | Sequence, colour: Colour) -> None:
        cv2.fillPoly(self.pixels, [self.points(points)], colour, cv2.LINE_AA, FIXED_POINT)

    def line(self, points: np.ndarray, colour: Colour, thickness: float) -> None:
        width = max(1, round(thickness * self.size / 2))
        points = self.points(points)
        cv2.polylines(self.pixels, [points], False, colour, width, cv2.LINE_AA, FIXED_POINT)

    def curve(self, points: Sequence, colour: Colour, thickness: float, side: float = 1) -> None:
        """Draws a Bezier curve; a `side` of -1 mirrors it."""
        self.line(_curve(points) * [side, 1], colour, thickness)


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    cosines, sines = _arc(start, stop)
    return np.stack([x + rx * cosines, y + ry * sines], axis=1)


@functools.lru_cache
def _arc(start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(start, stop, 40)
    return np.cos(t), np.sin(t)


def _curve(points: Sequence, count: int = 24) -> np.ndarray:
    """Returns a Bezier curve through its first and last point, [count, 2]."""
    p = np.asarray(points, np.float64)
    terms = (
        weights * point for weights, point in zip(_bernstein(len(p) - 1, count), p, strict=True)
    )
    return sum(terms, np.zeros((count, 2)))


@functools.lru_cache
def _bernstein(n: int, count: int) -> list[np.ndarray]:
    """The polynomials of degree n at points from 0 to 1, each [count, 1]."""
    t = np.linspace(0, 1, count)[:, None]
    return [math.comb(n, k) * (1 - t) ** (n - k) * t**k for k in range(n + 1)]


def _head_outline(who: Identity, grow: float = 1.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 80)
    width = who.face_width * grow * np.ones_like(t)
    # The jaw narrows towards the chin.
    width = np.where(np.sin(t) > 0, width * (1 - (1 - 0.82 * who.jaw) * np.sin(t) ** 3), width)
    return np.stack([width * np.cos(t), 0.04 + who.face_height * grow * np.sin(t)], axis=1)


def _draw_hair_behind(canvas: _Canvas, who: Identity) -> None:
    w, h = who.face_width, who.face_height
    if who.hair_style == LONG:
        canvas.fill(_ellipse(0, -0.08, w * 1.25, h * 1.02), who.hair)
        sides = [[-w * 1.25, -0.1], [w * 1.25, -0.1], [w * 1.2, 0.95], [-w * 1.2, 0.95]]
        canvas.fill(sides, who.hair)
    elif who.hair_style == CURLY:
        for angle in np.linspace(np.pi * 0.92, 2.08 * np.pi, 13):
            x, y = w * 1.06 * np.cos(angle), -0.06 + h * 1.0 * np.sin(angle)
            canvas.fill(_ellipse(x, y, 0.17, 0.17), who.hair)
    elif who.hair_style in (SHORT, PARTED):
        canvas.fill(_ellipse(0, -0.12, w * 1.1, h * 0.98), who.hair)


def _draw_hair_front(canvas: _Canvas, who: Identity) -> None:
    if who.hair_style == BALD:
        return
    w, top = who.face_width, 0.04 - who.face_height
    if who.hair_style == PARTED:
        fringe = _curve([(-w * 0.98, -0.22), (-w * 0.2, top + 0.2), (w * 0.5, top + 0.12)])
        rest = _curve([(w * 0.5, top + 0.12), (w * 0.9, top + 0.3), (w * 0.98, -0.2)])
    else:
        fringe = _curve([(-w * 0.99, -0.2), (-w * 0.8, top + 0.32), (0, top + 0.24)])
        rest = _curve([(0, top + 0.24), (w * 0.8, top + 0.32), (w * 0.99, -0.2)])
    crown = _ellipse(0, 0.04, w * 1.03, who.face_height * 1.03, 1.89 * np.pi, 1.11 * np.pi)
    canvas.fill(np.concatenate([fringe, rest, crown]), who.hair)


def _draw_eye(canvas: _Canvas, who: Identity, face: Expression, side: float) -> None:
    x, y = side * who.eye_distance, -0.11
    width = 0.105 * who.eye_size
    lids = float(np.clip(face.actions["lids"], -1, 1.1))
    opening = max(0.008, 0.058 * who.eye_size * (1 + (0.75 if lids > 0 else 0.8) * lids))
    inner, outer = (x - side * width, y + 0.012), (x + side * width, y - 0.012)
    squint = 0.7 - 0.35 * max(0.0, face.actions["corners"])
    upper = _curve([inner, (x, y - 2 * opening), outer])
    lower = _curve([outer, (x, y + 2 * opening * squint), inner])
    outline = np.concatenate([upper, lower])
    canvas.fill(outline, (244, 243, 240))
    # The lids cut the iris: pixels outside the outline are restored.
    mask = np.zeros(canvas.pixels.shape[:2], np.uint8)
    cv2.fillPoly(mask, [canvas.points(outline)], 255, cv2.LINE_8, FIXED_POINT)
    before = canvas.pixels.copy()
    ix, iy = x + 0.055 * face.gaze[0], y - 0.006 + 0.022 * face.gaze[1]
    canvas.fill(_ellipse(ix, iy, 0.052, 0.052), _shade(who.eyes, 0.75))
    canvas.fill(_ellipse(ix, iy, 0.044, 0.044), who.eyes)
    canvas.fill(_ellipse(ix, iy, 0.022, 0.022), (12, 10, 10))
    canvas.fill(_ellipse(ix - 0.014, iy - 0.016, 0.01, 0.01), (255, 255, 255))
    cv2.copyTo(canvas.pixels, mask, before)
    canvas.pixels = before
    canvas.line(upper, _shade(who.skin, 0.3), 0.018)
    canvas.line(lower, _shade(who.skin, 0.62), 0.008)
    canvas.line(upper - [0, 0.03], _shade(who.skin, 0.72), 0.008)
    if who.glasses:
        canvas.line(_ellipse(x, y + 0.01, 0.165, 0.13), GLASSES, 0.018)


def _draw_brow(canvas: _Canvas, who: Identity, face: Expression, side: float) -> None:
    a = face.actions
    y = -0.11 - who.brow_height
    inner_y = y - 0.085 * a["inner"] + 0.10 * a["lower"]
    outer_y = y - 0.075 * a["outer"] + 0.015 * a["lower"] + 0.012
    inner_x, outer_x = who.eye_distance - 0.115 - 0.03 * a["lower"], who.eye_distance + 0.14
    middle = ((inner_x + outer_x) / 2, (inner_y + outer_y) / 2 - 0.05 - 0.025 * a["outer"])
    colour = _blend(who.hair, (20, 16, 14), 0.35)
    canvas.curve([(inner_x, inner_y), middle, (outer_x, outer_y)], colour, who.brow_thickness, side)
    if a["lower"] > 0.3:
        crease = np.array([[side * 0.03, y - 0.02], [side * 0.035, y + 0.09]])
        canvas.line(crease, _shade(who.skin, 1 - 0.4 * a["lower"]), 0.012)
    if a["inner"] > 0.4:
        dark = _shade(who.skin, 1 - 0.22 * a["inner"])
        for up in (0.09, 0.14):
            canvas.curve([(0.0, y - up), (0.12, y - up - 0.02), (0.22, y - up)], dark, 0.01, side)


def _draw_nose(canvas: _Canvas, who: Identity, face: Expression) -> None:
    wrinkle = float(np.clip(face.actions["nose"], 0, 1.2))
    tip = -0.11 + who.nose_length - 0.025 * wrinkle
    shade = _shade(who.skin, 0.78)
    w = who.nose_width * (1 + 0.22 * wrinkle)
    canvas.curve([(-0.035, -0.08), (-0.045, tip - 0.1), (-w, tip)], shade, 0.012)
    canvas.curve([(-w, tip), (-w * 0.4, tip + 0.04), (0, tip + 0.03)], shade, 0.016)
    canvas.curve([(0, tip + 0.03), (w * 0.4, tip + 0.04), (w, tip)], shade, 0.016)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * w * 0.5, tip + 0.015, 0.02, 0.012), _shade(who.skin, 0.5))
        if wrinkle > 0.3:
            dark = _shade(who.skin, 1 - 0.42 * wrinkle)
            for up in (0.13, 0.17, 0.21):
                points = [(0.02, tip - up), (0.05, tip - up - 0.015), (0.085, tip - up + 0.02)]
                canvas.curve(points, dark, 0.01, side)
        if wrinkle > 0.3 or face.actions["corners"] > 0.35:
            depth = max(wrinkle, face.actions["corners"])
            fold = [(w + 0.03, tip), (w + 0.13, tip + 0.06), (w + 0.13, tip + 0.19)]
            canvas.curve(fold, _shade(who.skin, 1 - 0.3 * depth), 0.014, side)


def _draw_mouth(canvas: _Canvas, who: Identity, face: Expression) -> None:
    a, y = face.actions, who.mouth_height
    half = who.mouth_width * (1 + 0.22 * a["wide"] + 0.12 * max(0.0, a["corners"]))
    corner_y = y - 0.075 * a["corners"]
    opening = float(np.clip(a["open"], 0, 1.2))
    press = float(np.clip(a["press"], 0, 1))
    gap = 0.19 * opening
    fullness = 0.034 * who.lip_fullness * (1 - 0.75 * press)
    bend = 0.055 * a["corners"]
    raised = 0.045 * float(np.clip(a["nose"], 0, 1))  # disgust lifts the upper lip
    left, right = (-half, corner_y), (half, corner_y)
    upper_in = _curve([left, (0, y - 0.4 * gap + 2 * bend - 2 * raised), right])
    lower_in = _curve([right, (0, y + 1.7 * gap + 2 * bend), left])
    top = y - 0.4 * gap + bend - raised - 2.2 * fullness - 0.01
    upper_out = _curve([right, (half * 0.35, top), (-half * 0.35, top), left])
    lower_out = _curve([left, (0, y + 1.7 * gap + 2 * bend + 3.4 * fullness + 0.012), right])
    lip = _blend(_shade(who.skin, 0.78), (176, 60, 70), 0.5 if who.gender == "female" else 0.32)
    canvas.fill(np.concatenate([upper_in, upper_out]), _shade(lip, 0.92))
    canvas.fill(np.concatenate([lower_in, lower_out]), lip)
    if opening > 0.08:
        canvas.fill(np.concatenate([upper_in, lower_in]), (58, 18, 22))
        if a["corners"] > 0.2 or a["wide"] > 0.4:
            edge = upper_in * [0.82, 1] + [0, min(0.05, 0.45 * gap)]
            teeth = np.concatenate([upper_in * [0.88, 1] + [0, 0.004], edge[::-1]])
            canvas.fill(teeth, (238, 234, 226))
    else:
        canvas.line(upper_in, _shade(who.skin, 0.36), 0.016 + 0.01 * press)
    if a["corners"] < -0.4:
        dark = _shade(who.skin, 1 + 0.3 * a["corners"])
        for side in (-1, 1):
            points = [(half, corner_y), (half + 0.02, corner_y + 0.05)]
            canvas.curve([*points, (half + 0.005, corner_y + 0.11)], dark, 0.012, side)


def _draw_stubble(canvas: _Canvas, who: Identity) -> None:
    w, mouth = who.face_width, who.mouth_height
    outline = _head_outline(who, 0.985)
    inner = _curve(
        [(w * 0.9, -0.02), (w * 0.75, 0.45), (w * 0.25, mouth - 0.12), (0.0, mouth - 0.1)]
    )
    inner = np.concatenate([inner, inner[::-1] * [-1, 1]])
    mask = np.zeros(canvas.pixels.shape[:2], np.float32)
    shape = np.concatenate([outline[outline[:, 1] > 0], inner[::-1]])
    cv2.fillPoly(mask, [canvas.points(shape)], 1.0, cv2.LINE_8, FIXED_POINT)
    lip = _ellipse(0, mouth + 0.02, who.mouth_width * 0.85, 0.08)
    cv2.fillPoly(mask, [canvas.points(lip)], 0.4, cv2.LINE_8, FIXED_POINT)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.025 * canvas.size) * _drawn_on(canvas)
    share = (0.25 + 0.55 * who.beard) * mask[..., None]
    canvas.pixels = to_uint8(canvas.pixels * (1 - share) + np.asarray(who.hair) * share)


def draw_head(
    who: Identity, face: Expression, size: int, *, stubble: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a head without light and camera, upright and in the middle.

    Returns:
      uint8 RGB [2 size, 2 size, 3], and whether a pixel is drawn on, [2 size, 2 size]. With
      `stubble` a beard has a soft edge and leaves the cheeks free.
    """
    canvas = _Canvas(size)
    canvas.pixels[:] = MARK
    w, skin = who.face_width, who.skin
    shirt = [[-0.95, 1.1], [-0.7, 0.93], [-0.2, 0.84], [0.2, 0.84], [0.7, 0.93], [0.95, 1.1]]
    canvas.fill(shirt, _blend(who.eyes, (90, 90, 100), 0.6))
    _draw_hair_behind(canvas, who)
    neck = [[-w * 0.45, 0.5], [w * 0.45, 0.5], [w * 0.5, 0.93], [-w * 0.5, 0.93]]
    canvas.fill(neck, _shade(skin, 0.78))
    for side in (-1, 1):
        canvas.fill(_ellipse(side * w * 0.99, 0.02, 0.075, 0.13), _shade(skin, 0.88))
    canvas.fill(_head_outline(who), skin)
    if who.beard and stubble:
        _draw_stubble(canvas, who)
    elif who.beard:
        outline = _head_outline(who, 0.995)
        inner = _curve([(w * 0.75, 0.2), (0.0, 0.30), (-w * 0.75, 0.2)])
        beard = np.concatenate([outline[outline[:, 1] > 0.2], inner[::-1]])
        canvas.fill(beard, _blend(skin, who.hair, 0.65 * who.beard))
    for side in (-1, 1) if who.age > 50 else ():
        bag = [(0.14, -0.02), (0.24, 0.03), (0.34, -0.02)]
        canvas.curve(bag, _shade(skin, 0.82), 0.012, side)
    for side in (-1, 1) if face.actions["corners"] > 0.3 else ():
        canvas.fill(_ellipse(side * 0.31, 0.13, 0.09, 0.06), _blend(skin, (214, 96, 96), 0.22))
    _draw_nose(canvas, who, face)
    _draw_mouth(canvas, who, face)
    for side in (-1.0, 1.0):
        _draw_eye(canvas, who, face, side)
        _draw_brow(canvas, who, face, side)
    if who.glasses:
        canvas.line(np.array([[-0.06, -0.11], [0.06, -0.11]]), GLASSES, 0.018)
    _draw_hair_front(canvas, who)
    return canvas.pixels, _drawn_on(canvas)


def _drawn_on(canvas: _Canvas) -> np.ndarray:
    """Whether a pixel is drawn on, [side, side]."""
    return cv2.inRange(canvas.pixels, MARK, MARK) == 0


def _background(source: str, content: str, size: int, rng: np.random.Generator) -> np.ndarray:
    if source == "controlled":
        grey = rng.uniform(150, 185) + 12 * (1 - _grid(size)[0])
        return np.repeat(grey[..., None], 3, axis=2)
    image = np.full((size, size, 3), rng.uniform(50, 200, 3))
    image = np.ascontiguousarray(image * 0.6 + 0.4 * np.array(CONTENT_LIGHT[content], np.float64))
    for _ in range(int(rng.integers(6, 14))):
        colour = tuple(rng.uniform(20, 240, 3).tolist())
        x0, y0 = rng.integers(-size // 4, size, 2).tolist()
        w, h = rng.integers(size // 8, size // 2, 2).tolist()
        if rng.random() < 0.6:
            cv2.rectangle(image, (x0, y0), (x0 + w, y0 + h), colour, -1)
        else:
            cv2.circle(image, (x0, y0), w // 2, colour, -1)
    return image


def draw_face(
    who: Identity,
    face: Expression,
    source: str,
    content: str,
    rng: np.random.Generator,
    *,
    size: int = 128,
) -> np.ndarray:
    """Renders one image.

    Args:
      who: the person.
      face: the expression.
      source: "controlled" (frontal, even light, plain background, sharp) or "social" (clutter,
        coloured one-sided light, off-centre, text, blur, noise, compression).
      content: what is advertised; its light falls on the face.
      rng: for background, light and camera.
      size: of the image, in pixels.

    Returns:
      uint8 RGB [size, size, 3].
    """
    social = source == "social"
    head, covered = draw_head(who, face, size)
    big = head.shape[0]
    scale = face.lean * (rng.uniform(0.82, 1.12) if social else rng.uniform(0.97, 1.02))
    roll = face.roll_degrees + rng.normal(0, 8.0 if social else 1.0)
    matrix = cv2.getRotationMatrix2D((big / 2, big / 2), roll, scale)
    matrix[:, 2] += rng.normal(0, 0.045 if social else 0.01, 2) * big
    layers = np.dstack([head, np.where(covered, 255, 0).astype(np.uint8)])
    layers = cv2.warpAffine(layers, matrix, (big, big), flags=cv2.INTER_LINEAR)
    layers = cv2.resize(layers, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    head, alpha = layers[..., :3], layers[..., 3:] / 255

    y, x = _grid(size)
    # The head is round: darker towards its edge.
    shading = (1.06 - 0.28 * np.clip(x**2 + (0.8 * y) ** 2, 0, 1))[..., None]
    light = np.array(CONTENT_LIGHT[content], np.float32) / 255
    if social:
        direction = rng.uniform(0, 2 * np.pi)
        side = 1 + rng.uniform(0.15, 0.5) * (x * np.cos(direction) + y * np.sin(direction))
        tint = 1 + (light * rng.uniform(0.8, 1.2, 3) - 0.7) * rng.uniform(0.3, 0.9)
        shading = shading * side[..., None] * tint
    else:
        shading = shading * (1 + 0.06 * (light - 0.6))
    head = head * shading
    background = _background(source, content, size, rng).astype(np.float32)
    if social:
        background = cv2.GaussianBlur(background, (0, 0), rng.uniform(0.004, 0.02) * size)
    image = head * alpha + background * (1 - alpha)
    if social:
        return _social_camera(image, rng)
    return to_uint8(image + 1.5 * rng.standard_normal(image.shape, np.float32))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (y, x) in -1..1, float32 [size, size] each."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    return y, x


def _social_camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies what a phone and a platform do: contrast, motion blur, noise, text, compression."""
    size = image.shape[0]
    image = 128 + (image - 128) * rng.uniform(0.65, 1.15) + rng.uniform(-30, 20)
    if rng.random() < 0.35:
        angle, length = rng.uniform(0, np.pi), int(rng.integers(3, 6))
        kernel = np.zeros((length, length))
        middle = (length - 1) / 2
        for t in np.linspace(-middle, middle, 2 * length):
            kernel[round(middle + t * np.sin(angle)), round(middle + t * np.cos(angle))] = 1
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    noise = rng.standard_normal(image.shape, np.float32)
    image = to_uint8(image + rng.uniform(2, 12) * noise)
    if rng.random() < 0.4:
        text = str(rng.choice(["LIVE", "wow", "new!", "AD", "#fyp", "review"]))
        place = (int(rng.uniform(0.02, 0.6) * size), int(rng.choice([0.12, 0.97]) * size))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            font, scale = cv2.FONT_HERSHEY_SIMPLEX, size / 280
            cv2.putText(image, text, place, font, scale, colour, thickness, cv2.LINE_AA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(18, 60))]
    _, compressed = cv2.imencode(".jpg", image[..., ::-1], quality)
    return np.asarray(cv2.imdecode(compressed, cv2.IMREAD_COLOR_RGB))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds an image to grey levels."""
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
