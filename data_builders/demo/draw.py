"""Faces drawn from parameters: who it is, what the face does, and how the camera sees it.

Coordinates are in units of half the picture, from its centre, y down; everything is drawn at
twice the size and reduced. Pure functions of their generators.
"""

import dataclasses

import cv2
import numpy as np

SUPERSAMPLING = 2
FIXED_POINT = 4  # bits after the point in OpenCV's drawing coordinates

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
# The screen's light on the viewer, by what is advertised (RGB).
CONTENT_LIGHT = {
    "food_market": (255, 170, 90),
    "cosmetics_fashion": (255, 130, 190),
    "car_tech": (110, 170, 255),
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays the same over all pictures of a person."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    eyes: tuple[int, int, int]
    face_width: float
    face_height: float
    jaw: float
    eye_distance: float
    eye_size: float
    brow_thickness: float
    brow_height: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_fullness: float
    mouth_height: float
    hair_style: int  # 0 bald, 1 short, 2 parted, 3 long, 4 curly
    glasses: bool
    beard: float
    gender: str
    age: int


def identity(rng: np.random.Generator) -> Identity:
    """Draws a person."""
    tone = rng.uniform(0, 1)
    light, dark = np.array([250, 218, 192]), np.array([92, 58, 40])
    skin = light + (dark - light) * tone + rng.normal(0, 5, 3)
    hairs = [
        (30, 24, 22),
        (62, 40, 26),
        (104, 68, 38),
        (196, 156, 92),
        (150, 66, 34),
        (150, 150, 152),
    ]
    eyes = [(70, 44, 26), (96, 66, 34), (84, 110, 78), (84, 124, 160), (104, 116, 124)]
    gender = str(rng.choice(["female", "male"]))
    age = int(rng.integers(18, 72))
    hair = hairs[5] if age > 55 and rng.random() < 0.6 else hairs[int(rng.integers(0, 5))]
    styles = [2, 3, 3, 4] if gender == "female" else [0, 1, 1, 2, 4]
    return Identity(
        skin=_colour(skin),
        hair=_colour(np.array(hair) + rng.normal(0, 6, 3)),
        eyes=eyes[int(rng.integers(0, len(eyes)))],
        face_width=rng.uniform(0.50, 0.60),
        face_height=rng.uniform(0.68, 0.78),
        jaw=rng.uniform(0.75, 1.05) + (0.06 if gender == "male" else 0),
        eye_distance=rng.uniform(0.215, 0.26),
        eye_size=rng.uniform(0.9, 1.12),
        brow_thickness=rng.uniform(0.028, 0.045) + (0.012 if gender == "male" else 0),
        brow_height=rng.uniform(0.145, 0.18),
        nose_length=rng.uniform(0.25, 0.32),
        nose_width=rng.uniform(0.075, 0.125),
        mouth_width=rng.uniform(0.19, 0.25),
        lip_fullness=rng.uniform(0.8, 1.3) + (0.2 if gender == "female" else 0),
        mouth_height=rng.uniform(0.36, 0.42),
        hair_style=int(rng.choice(styles)),
        glasses=bool(rng.random() < 0.18),
        beard=float(rng.uniform(0.3, 1)) if gender == "male" and rng.random() < 0.35 else 0.0,
        gender=gender,
        age=age,
    )


@dataclasses.dataclass(frozen=True)
class Expression:
    """What the face does: actions by name, and where it looks."""

    actions: dict[str, float]
    gaze: tuple[float, float]  # -1 to 1, right and down
    roll_degrees: float
    lean: float  # size of the head, about 1


def expression(
    emotion: str, interested: bool, intensity: float, rng: np.random.Generator
) -> Expression:
    """Draws how a person shows an emotion and interest.

    Args:
      emotion: a word of `schema.EMOTIONS`.
      interested: looks at the camera with open eyes and leans in; otherwise looks away with
        heavy lids and a tilted head.
      intensity: 0 (nothing to see) to 1 and beyond.
      rng: decides the small differences between two takes.
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


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return _colour(np.array(colour) * factor)


def _blend(a: tuple[int, int, int], b: tuple[int, int, int], t: float) -> tuple[int, int, int]:
    return _colour(np.array(a) * (1 - t) + np.array(b) * t)


class _Canvas:
    """Draws in units of half the picture; OpenCV wants fixed-point pixels."""

    def __init__(self, size: int):
        self.size = size * SUPERSAMPLING
        self.pixels = np.zeros((self.size, self.size, 3), np.uint8)

    def points(self, points: np.ndarray) -> np.ndarray:
        pixels = (np.asarray(points, np.float64) + 1) * self.size / 2
        return np.round(pixels * 2**FIXED_POINT).astype(np.int32)

    def fill(self, points: np.ndarray, colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(self.pixels, [self.points(points)], colour, cv2.LINE_AA, FIXED_POINT)

    def line(self, points: np.ndarray, colour: tuple[int, int, int], thickness: float) -> None:
        width = max(1, round(thickness * self.size / 2))
        cv2.polylines(
            self.pixels, [self.points(points)], False, colour, width, cv2.LINE_AA, FIXED_POINT
        )


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    t = np.linspace(start, stop, 40)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def _curve(points: list[tuple[float, float]], count: int = 24) -> np.ndarray:
    """A quadratic or cubic Bezier curve through its first and last point."""
    t = np.linspace(0, 1, count)[:, None]
    p = np.asarray(points, np.float64)
    if len(p) == 3:
        return (1 - t) ** 2 * p[0] + 2 * (1 - t) * t * p[1] + t**2 * p[2]
    return (
        (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1] + 3 * (1 - t) * t**2 * p[2] + t**3 * p[3]
    )


def _head_outline(who: Identity, grow: float = 1.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 80)
    width = who.face_width * grow * np.ones_like(t)
    lower = np.sin(t) > 0
    # The jaw narrows towards the chin.
    width = np.where(lower, width * (1 - (1 - 0.82 * who.jaw) * np.sin(t) ** 3), width)
    return np.stack([width * np.cos(t), 0.04 + who.face_height * grow * np.sin(t)], axis=1)


def _draw_hair_behind(canvas: _Canvas, who: Identity) -> None:
    w, h = who.face_width, who.face_height
    if who.hair_style == 3:
        canvas.fill(_ellipse(0, -0.08, w * 1.25, h * 1.02), who.hair)
        canvas.fill(
            np.array([[-w * 1.25, -0.1], [w * 1.25, -0.1], [w * 1.2, 0.95], [-w * 1.2, 0.95]]),
            who.hair,
        )
    elif who.hair_style == 4:
        for angle in np.linspace(np.pi * 0.92, 2.08 * np.pi, 13):
            x, y = w * 1.06 * np.cos(angle), -0.06 + h * 1.0 * np.sin(angle)
            canvas.fill(_ellipse(x, y, 0.17, 0.17), who.hair)
    elif who.hair_style in (1, 2):
        canvas.fill(_ellipse(0, -0.12, w * 1.1, h * 0.98), who.hair)


def _draw_hair_front(canvas: _Canvas, who: Identity) -> None:
    w, h = who.face_width, who.face_height
    if who.hair_style == 0:
        return
    top = 0.04 - h
    if who.hair_style == 2:
        fringe = _curve([(-w * 0.98, -0.22), (-w * 0.2, top + 0.2), (w * 0.5, top + 0.12)])
        rest = _curve([(w * 0.5, top + 0.12), (w * 0.9, top + 0.3), (w * 0.98, -0.2)])
    else:
        fringe = _curve([(-w * 0.99, -0.2), (-w * 0.8, top + 0.32), (0, top + 0.24)])
        rest = _curve([(0, top + 0.24), (w * 0.8, top + 0.32), (w * 0.99, -0.2)])
    crown = _ellipse(0, 0.04, w * 1.03, h * 1.03, 1.89 * np.pi, 1.11 * np.pi)
    canvas.fill(np.concatenate([fringe, rest, crown]), who.hair)


def _draw_eye(canvas: _Canvas, who: Identity, face: Expression, side: float) -> None:
    x, y = side * who.eye_distance, -0.11
    width = 0.105 * who.eye_size
    lids = float(np.clip(face.actions["lids"], -1, 1.1))
    opening = 0.058 * who.eye_size * (1 + (0.75 if lids > 0 else 0.8) * lids)
    opening = max(0.008, opening)
    slope = 0.012
    corner_in, corner_out = (x - side * width, y + slope), (x + side * width, y - slope)
    upper = _curve([corner_in, (x, y - 2 * opening), corner_out])
    squint = 0.7 - 0.35 * max(0.0, face.actions["corners"])
    under = _curve([corner_out, (x, y + 2 * opening * squint), corner_in])
    outline = np.concatenate([upper, under])
    canvas.fill(outline, (244, 243, 240))
    # The iris is cut by the lids: drawn on a copy, kept inside the outline.
    mask = np.zeros(canvas.pixels.shape[:2], np.uint8)
    cv2.fillPoly(mask, [canvas.points(outline)], 255, cv2.LINE_8, FIXED_POINT)
    before = canvas.pixels.copy()
    ix, iy = x + 0.055 * face.gaze[0], y - 0.006 + 0.022 * face.gaze[1]
    canvas.fill(_ellipse(ix, iy, 0.052, 0.052), _shade(who.eyes, 0.75))
    canvas.fill(_ellipse(ix, iy, 0.044, 0.044), who.eyes)
    canvas.fill(_ellipse(ix, iy, 0.022, 0.022), (12, 10, 10))
    canvas.fill(_ellipse(ix - 0.014, iy - 0.016, 0.01, 0.01), (255, 255, 255))
    canvas.pixels = np.where(mask[..., None] > 0, canvas.pixels, before)
    canvas.line(upper, _shade(who.skin, 0.3), 0.018)
    canvas.line(under, _shade(who.skin, 0.62), 0.008)
    crease = upper - [0, 0.03]
    canvas.line(crease, _shade(who.skin, 0.72), 0.008)
    if who.glasses:
        canvas.line(_ellipse(x, y + 0.01, 0.165, 0.13), (28, 28, 32), 0.018)


def _draw_brow(canvas: _Canvas, who: Identity, face: Expression, side: float) -> None:
    a = face.actions
    base = -0.11 - who.brow_height
    inner_y = base - 0.085 * a["inner"] + 0.10 * a["lower"]
    outer_y = base - 0.075 * a["outer"] + 0.015 * a["lower"] + 0.012
    inner_x = side * (who.eye_distance - 0.115 - 0.03 * a["lower"])
    outer_x = side * (who.eye_distance + 0.14)
    middle = ((inner_x + outer_x) / 2, (inner_y + outer_y) / 2 - 0.05 - 0.025 * a["outer"])
    line = _curve([(inner_x, inner_y), middle, (outer_x, outer_y)])
    canvas.line(line, _blend(who.hair, (20, 16, 14), 0.35), who.brow_thickness)
    if a["lower"] > 0.3:
        crease = np.array([[side * 0.03, base - 0.02], [side * 0.035, base + 0.09]])
        canvas.line(crease, _shade(who.skin, 1 - 0.4 * a["lower"]), 0.012)
    if a["inner"] > 0.4:
        for up in (0.09, 0.14):
            wrinkle = _curve(
                [(0.0, base - up), (side * 0.12, base - up - 0.02), (side * 0.22, base - up)]
            )
            canvas.line(wrinkle, _shade(who.skin, 1 - 0.22 * a["inner"]), 0.01)


def _draw_nose(canvas: _Canvas, who: Identity, face: Expression) -> None:
    wrinkle = float(np.clip(face.actions["nose"], 0, 1.2))
    tip = -0.11 + who.nose_length - 0.025 * wrinkle
    shade = _shade(who.skin, 0.78)
    width = who.nose_width * (1 + 0.22 * wrinkle)
    canvas.line(_curve([(-0.035, -0.08), (-0.045, tip - 0.1), (-width, tip)]), shade, 0.012)
    canvas.line(_curve([(-width, tip), (-width * 0.4, tip + 0.04), (0, tip + 0.03)]), shade, 0.016)
    canvas.line(_curve([(0, tip + 0.03), (width * 0.4, tip + 0.04), (width, tip)]), shade, 0.016)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * width * 0.5, tip + 0.015, 0.02, 0.012), _shade(who.skin, 0.5))
        if wrinkle > 0.3:
            dark = _shade(who.skin, 1 - 0.42 * wrinkle)
            for up in (0.13, 0.17, 0.21):
                line = _curve(
                    [
                        (side * 0.02, tip - up),
                        (side * 0.05, tip - up - 0.015),
                        (side * 0.085, tip - up + 0.02),
                    ]
                )
                canvas.line(line, dark, 0.01)
        if wrinkle > 0.3 or face.actions["corners"] > 0.35:
            depth = max(wrinkle, face.actions["corners"])
            fold = _curve(
                [
                    (side * (width + 0.03), tip),
                    (side * (width + 0.13), tip + 0.06),
                    (side * (width + 0.13), tip + 0.19),
                ]
            )
            canvas.line(fold, _shade(who.skin, 1 - 0.3 * depth), 0.014)


def _draw_mouth(canvas: _Canvas, who: Identity, face: Expression) -> None:
    a = face.actions
    y = who.mouth_height
    half = who.mouth_width * (1 + 0.22 * a["wide"] + 0.12 * max(0.0, a["corners"]))
    corner_y = y - 0.075 * a["corners"]
    opening = float(np.clip(a["open"], 0, 1.2))
    gap = 0.19 * opening
    fullness = 0.034 * who.lip_fullness * (1 - 0.75 * float(np.clip(a["press"], 0, 1)))
    bend = 0.055 * a["corners"]
    raised = 0.045 * float(np.clip(a["nose"], 0, 1))  # disgust lifts the upper lip
    left, right = (-half, corner_y), (half, corner_y)
    upper_in = _curve([left, (0, y - 0.4 * gap + 2 * bend - 2 * raised), right])
    lower_in = _curve([right, (0, y + 1.7 * gap + 2 * bend), left])
    upper_out = _curve(
        [
            right,
            (half * 0.35, y - 0.4 * gap + bend - raised - 2.2 * fullness - 0.01),
            (-half * 0.35, y - 0.4 * gap + bend - raised - 2.2 * fullness - 0.01),
            left,
        ]
    )
    lower_out = _curve([left, (0, y + 1.7 * gap + 2 * bend + 3.4 * fullness + 0.012), right])
    lip = _blend(_shade(who.skin, 0.78), (176, 60, 70), 0.5 if who.gender == "female" else 0.32)
    canvas.fill(np.concatenate([upper_in, upper_out]), _shade(lip, 0.92))
    canvas.fill(np.concatenate([lower_in, lower_out]), lip)
    if opening > 0.08:
        inside = np.concatenate([upper_in, lower_in])
        canvas.fill(inside, (58, 18, 22))
        if a["corners"] > 0.2 or a["wide"] > 0.4:
            teeth = np.concatenate(
                [
                    upper_in * [0.88, 1] + [0, 0.004],
                    (upper_in * [0.82, 1] + [0, min(0.05, 0.45 * gap)])[::-1],
                ]
            )
            canvas.fill(teeth, (238, 234, 226))
    else:
        canvas.line(
            upper_in, _shade(who.skin, 0.36), 0.016 + 0.01 * float(np.clip(a["press"], 0, 1))
        )
    if a["corners"] < -0.4:
        for side in (-1, 1):
            line = _curve(
                [
                    (side * half, corner_y),
                    (side * (half + 0.02), corner_y + 0.05),
                    (side * (half + 0.005), corner_y + 0.11),
                ]
            )
            canvas.line(line, _shade(who.skin, 1 + 0.3 * a["corners"]), 0.012)


def _head(who: Identity, face: Expression, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The head alone: RGB and coverage, both [2 size, 2 size, ...], before light and camera."""
    canvas = _Canvas(size)
    canvas.pixels[:] = 1  # not quite black, so that what is drawn can be told from what is not
    w = who.face_width
    shirt = _blend(who.eyes, (90, 90, 100), 0.6)
    canvas.fill(
        np.array([[-0.95, 1.1], [-0.7, 0.93], [-0.2, 0.84], [0.2, 0.84], [0.7, 0.93], [0.95, 1.1]]),
        shirt,
    )
    _draw_hair_behind(canvas, who)
    neck = np.array([[-w * 0.45, 0.5], [w * 0.45, 0.5], [w * 0.5, 0.93], [-w * 0.5, 0.93]])
    canvas.fill(neck, _shade(who.skin, 0.78))
    for side in (-1, 1):
        canvas.fill(_ellipse(side * w * 0.99, 0.02, 0.075, 0.13), _shade(who.skin, 0.88))
    canvas.fill(_head_outline(who), who.skin)
    if who.beard:
        beard = _head_outline(who, 0.995)
        beard = beard[beard[:, 1] > 0.2]
        inner = _curve([(w * 0.75, 0.2), (0.0, 0.30), (-w * 0.75, 0.2)])
        canvas.fill(
            np.concatenate([beard, inner[::-1]]), _blend(who.skin, who.hair, 0.65 * who.beard)
        )
    if who.age > 50:
        for side in (-1, 1):
            bag = _curve([(side * 0.14, -0.02), (side * 0.24, 0.03), (side * 0.34, -0.02)])
            canvas.line(bag, _shade(who.skin, 0.82), 0.012)
    cheek = _blend(who.skin, (214, 96, 96), 0.22)
    if face.actions["corners"] > 0.3:
        for side in (-1, 1):
            canvas.fill(_ellipse(side * 0.31, 0.13, 0.09, 0.06), cheek)
    _draw_nose(canvas, who, face)
    _draw_mouth(canvas, who, face)
    for side in (-1.0, 1.0):
        _draw_eye(canvas, who, face, side)
        _draw_brow(canvas, who, face, side)
    if who.glasses:
        canvas.line(np.array([[-0.06, -0.11], [0.06, -0.11]]), (28, 28, 32), 0.018)
    _draw_hair_front(canvas, who)
    covered = (canvas.pixels != 1).any(axis=-1)
    return canvas.pixels, covered


def _background(source: str, content: str, size: int, rng: np.random.Generator) -> np.ndarray:
    light = np.array(CONTENT_LIGHT[content], np.float64)
    if source == "controlled":
        y, _ = _grid(size)
        grey = rng.uniform(150, 185) + 12 * (1 - y)
        return np.repeat(grey[..., None], 3, axis=2)
    picture = np.full((size, size, 3), rng.uniform(50, 200, 3))
    picture = np.ascontiguousarray(picture * 0.6 + 0.4 * light)
    for _ in range(int(rng.integers(6, 14))):
        colour = tuple(rng.uniform(20, 240, 3).tolist())
        x0, y0 = rng.integers(-size // 4, size, 2).tolist()
        w, h = rng.integers(size // 8, size // 2, 2).tolist()
        if rng.random() < 0.6:
            cv2.rectangle(picture, (x0, y0), (x0 + w, y0 + h), colour, -1)
        else:
            cv2.circle(picture, (x0, y0), w // 2, colour, -1)
    return picture


def draw_face(
    who: Identity,
    face: Expression,
    source: str,
    content: str,
    rng: np.random.Generator,
    *,
    size: int = 128,
) -> np.ndarray:
    """Draws one picture.

    Args:
      who: the person.
      face: what the face does.
      source: "controlled" (frontal, even light, plain background, sharp) or "social" (clutter,
        coloured one-sided light, off-centre, text, blur, noise, compression).
      content: what is advertised; its light falls on the face.
      rng: of background, light and camera.
      size: pixels a side.

    Returns:
      uint8 RGB [size, size, 3].
    """
    wild = source == "social"
    head, covered = _head(who, face, size)
    big = head.shape[0]
    scale = face.lean * (rng.uniform(0.82, 1.12) if wild else rng.uniform(0.97, 1.02))
    roll = face.roll_degrees + rng.normal(0, 8.0 if wild else 1.0)
    matrix = cv2.getRotationMatrix2D((big / 2, big / 2), roll, scale)
    matrix[:, 2] += rng.normal(0, 0.045 if wild else 0.01, 2) * big
    layers = np.dstack([head, np.where(covered, 255, 0).astype(np.uint8)])
    layers = cv2.warpAffine(layers, matrix, (big, big), flags=cv2.INTER_LINEAR)
    layers = cv2.resize(layers, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    head, alpha = layers[..., :3], layers[..., 3:] / 255

    y, x = _grid(size)
    # Roundness: darker towards the edge of the head.
    shading = (1.06 - 0.28 * np.clip(x**2 + (0.8 * y) ** 2, 0, 1))[..., None]
    light = np.array(CONTENT_LIGHT[content], np.float32) / 255
    if wild:
        direction = rng.uniform(0, 2 * np.pi)
        side = 1 + rng.uniform(0.15, 0.5) * (x * np.cos(direction) + y * np.sin(direction))
        tint = 1 + (light * rng.uniform(0.8, 1.2, 3) - 0.7) * rng.uniform(0.3, 0.9)
        shading = shading * side[..., None] * tint
    else:
        shading = shading * (1 + 0.06 * (light - 0.6))
    head = head * shading
    background = _background(source, content, size, rng).astype(np.float32)
    if wild:
        background = cv2.GaussianBlur(background, (0, 0), rng.uniform(0.004, 0.02) * size)
    picture = head * alpha + background * (1 - alpha)
    if source == "controlled":
        return _finish(picture + 1.5 * rng.standard_normal(picture.shape, np.float32))
    return _social_camera(picture, rng)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) in -1..1, float32 [size, size] each."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    return y, x


def _social_camera(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What happens to a picture on its way through a phone and a platform."""
    size = picture.shape[0]
    picture = 128 + (picture - 128) * rng.uniform(0.65, 1.15) + rng.uniform(-30, 20)
    if rng.random() < 0.35:
        angle, length = rng.uniform(0, np.pi), int(rng.integers(3, 6))
        kernel = np.zeros((length, length))
        middle = (length - 1) / 2
        for t in np.linspace(-middle, middle, 2 * length):
            kernel[round(middle + t * np.sin(angle)), round(middle + t * np.cos(angle))] = 1
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    noise = rng.standard_normal(picture.shape, np.float32)
    picture = _finish(picture + rng.uniform(2, 12) * noise)
    if rng.random() < 0.4:
        word = str(rng.choice(["LIVE", "wow", "new!", "AD", "#fyp", "review"]))
        place = (int(rng.uniform(0.02, 0.6) * size), int(rng.choice([0.12, 0.97]) * size))
        white, black = (255, 255, 255), (0, 0, 0)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, word, place, font, size / 280, black, 3, cv2.LINE_AA)
        cv2.putText(picture, word, place, font, size / 280, white, 1, cv2.LINE_AA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(18, 60))]
    _, squeezed = cv2.imencode(".jpg", picture[..., ::-1], quality)
    return np.asarray(cv2.imdecode(squeezed, cv2.IMREAD_COLOR_RGB))


def _finish(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)
