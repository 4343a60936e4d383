"""Rendered rooms behind people, and pictures of advertisements."""

import functools

import cv2
import numpy as np

WALLS = ((214, 206, 192), (190, 200, 206), (206, 190, 178), (168, 180, 164), (226, 222, 214))
WOODS = ((120, 84, 54), (92, 66, 46), (164, 128, 88), (70, 58, 52))


def room(kind: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Renders a "wall", a "room" or a "desk" with shelves behind it: float32 RGB [h, w, 3]."""
    y, x = _grid(width, height)
    if kind == "wall":
        grey = rng.uniform(165, 195) - 14 * y - 8 * (x - rng.uniform(0.3, 0.7)) ** 2
        return np.repeat(grey[..., None], 3, axis=2)
    wall = np.asarray(WALLS[int(rng.integers(len(WALLS)))], np.float32) * rng.uniform(0.6, 1.0)
    image = np.ascontiguousarray(wall * (1.05 - 0.25 * y + 0.2 * (x - 0.5))[..., None])
    things = (_shelf, _window, _picture, _plant, _lamp)
    if kind == "desk":
        _shelf(image, rng, (0.0, 0.1, 1.0, 0.75))
        things = (_window, _lamp)
    for column in rng.permutation(3)[: int(rng.integers(1, 4))]:
        thing = things[int(rng.integers(len(things)))]
        left = (column + rng.uniform(-0.1, 0.1)) / 3
        thing(image, rng, (left, rng.uniform(0.02, 0.25), rng.uniform(0.2, 0.34), 0.5))
    return image


@functools.lru_cache
def _grid(width: int, height: int) -> np.ndarray:
    """The y and x of each pixel from 0 to 1, float32 [2, height, width]."""
    return np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)


Place = tuple[float, float, float, float]  # left, top, width and height, as shares of the image


def _pixels(image: np.ndarray, place: Place) -> tuple[int, int, int, int]:
    """The left, top, right and bottom of a place."""
    height, width = image.shape[:2]
    left, top, across, down = place
    return (
        *(round(left * width), round(top * height)),
        *(round((left + across) * width), round((top + down) * height)),
    )


def _fill(
    image: np.ndarray, corners: tuple[float, float, float, float], colour: np.ndarray
) -> None:
    left, top, right, bottom = (round(value) for value in corners)
    cv2.rectangle(image, (left, top), (right, bottom), colour.tolist(), -1)


def _wood(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(WOODS[int(rng.integers(len(WOODS)))], np.float64)


def _shelf(image: np.ndarray, rng: np.random.Generator, place: Place) -> None:
    left, top, right, bottom = _pixels(image, place)
    wood = _wood(rng)
    _fill(image, (left, top, right, bottom), 0.7 * wood)
    step = (bottom - top) / 3
    for board in range(3):
        floor = top + (board + 1) * step
        at = left + 3.0
        while at < right - 6:
            thick, tall = rng.uniform(5, 13), step * rng.uniform(0.5, 0.85)
            if rng.random() < 0.8:
                _fill(image, (at, floor - tall, at + thick, floor), rng.uniform(40, 190, 3))
            at += thick + 1
        _fill(image, (left, floor - 3, right, floor), wood)


def _window(image: np.ndarray, rng: np.random.Generator, place: Place) -> None:
    left, top, right, bottom = _pixels(image, place)
    _fill(image, (left - 4, top - 4, right + 4, bottom + 4), np.full(3, 232.0))
    sky = np.asarray([185, 215, 245]) if rng.random() < 0.7 else np.asarray([40, 50, 80])
    _fill(image, (left, top, right, bottom), sky.astype(np.float64))
    _fill(image, (left, (top + 2 * bottom) / 3, right, bottom), 0.7 * sky * [0.8, 1, 0.7])
    middle = (left + right) / 2
    _fill(image, (middle - 2, top, middle + 2, bottom), np.full(3, 232.0))


def _picture(image: np.ndarray, rng: np.random.Generator, place: Place) -> None:
    left, top, right, bottom = _pixels(image, place)
    bottom = round(top + 0.6 * (bottom - top))
    _fill(image, (left, top, right, bottom), np.full(3, 40.0))
    _fill(image, (left + 3, top + 3, right - 3, bottom - 3), rng.uniform(90, 230, 3))
    floor = rng.uniform(0.4, 0.8)
    _fill(
        image,
        (left + 3, top + floor * (bottom - top), right - 3, bottom - 3),
        rng.uniform(40, 200, 3),
    )


def _plant(image: np.ndarray, rng: np.random.Generator, place: Place) -> None:
    left, top, right, bottom = _pixels(image, place)
    middle, green = (left + right) // 2, np.asarray([60, 110, 56]) * rng.uniform(0.7, 1.2)
    for angle in rng.uniform(-1.2, 1.2, 9):
        length = (bottom - top) * rng.uniform(0.3, 0.6)
        end = (middle + length * np.sin(angle), bottom - 20 - length * np.cos(angle))
        centre = (round((middle + end[0]) / 2), round((bottom - 20 + end[1]) / 2))
        axes = (max(3, round(length / 8)), round(length / 2))
        colour = (green * rng.uniform(0.7, 1.2)).tolist()
        cv2.ellipse(image, centre, axes, float(np.degrees(angle)), 0, 360, colour, -1)
    _fill(image, (middle - 12, bottom - 22, middle + 12, bottom), np.asarray([170.0, 100.0, 70.0]))


def _lamp(image: np.ndarray, rng: np.random.Generator, place: Place) -> None:
    left, top, right, bottom = _pixels(image, place)
    middle, reach = (left + right) // 2, (right - left) // 3
    _fill(image, (middle - 2, top + 20, middle + 2, bottom), np.full(3, 60.0))
    shade = [[middle - reach // 2, top], [middle + reach // 2, top]]
    shade += [[middle + reach, top + 32], [middle - reach, top + 32]]
    warm = [255, rng.uniform(215, 240), rng.uniform(150, 200)]
    cv2.fillPoly(image, [np.asarray(shade, np.int32)], warm)


def advertisement(content: str, rng: np.random.Generator) -> np.ndarray:
    """Renders what a viewer watches, as a small picture: uint8 RGB [54, 72, 3]."""
    image = np.full((54, 72, 3), rng.uniform(150, 250, 3), np.uint8)
    colour = rng.uniform(20, 220, 3).tolist()
    if content == "car_tech":
        body = np.asarray(
            [[8, 38], [12, 28], [24, 26], [32, 17], [48, 17], [56, 27], [66, 30], [66, 38]]
        )
        cv2.fillPoly(image, [body.astype(np.int32)], colour, cv2.LINE_AA)
        for x in (20, 54):
            cv2.circle(image, (x, 39), 6, (20, 20, 20), -1, cv2.LINE_AA)
            cv2.circle(image, (x, 39), 3, (180, 180, 180), -1, cv2.LINE_AA)
    elif content == "cosmetics_fashion":
        cv2.rectangle(image, (30, 26), (42, 48), (40, 40, 44), -1)
        cv2.rectangle(image, (31, 18), (41, 26), (210, 180, 90), -1)
        tip = np.asarray([[32, 18], [32, 9], [40, 5], [40, 18]], np.int32)
        cv2.fillPoly(image, [tip], colour, cv2.LINE_AA)
    else:
        cv2.ellipse(image, (36, 30), (26, 9), 0, 0, 360, (245, 245, 240), -1, cv2.LINE_AA)
        cv2.ellipse(image, (36, 28), (17, 12), 0, 180, 360, (210, 150, 80), -1, cv2.LINE_AA)
        cv2.ellipse(image, (36, 29), (18, 4), 0, 0, 360, colour, -1, cv2.LINE_AA)
    cv2.rectangle(image, (0, 0), (71, 53), (250, 250, 250), 2)
    return image
