"""Each operator on images against a computation of its own, written from the definition with other tools."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts import RefusedError, operators, shift_image
from lmms_eval_emi.shifts.operators import random_state
from lmms_eval_emi.shifts.operators.visual.weather import PICTURES

VISUAL = list(operators("visual"))
SEED, ROW = 3, "row 7"


@pytest.fixture(autouse=True)
def frost_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Pictures that stand in for those of frost."""
    folder = tmp_path_factory.mktemp("frost")
    pictures = {}
    for number, name in enumerate(PICTURES):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
        picture.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
        pictures[name] = np.asarray(Image.open(folder / name).convert("RGB"))
    monkeypatch.setenv("LMMS_EVAL_EMI_FROST", str(folder))
    return pictures


def photograph(height: int = 60, width: int = 80) -> np.ndarray:
    """A picture with edges, areas and a gradient."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)).copy()
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (250, 10, 60)
    return pixels


def shifted(pixels: np.ndarray, name: str, level: int) -> np.ndarray:
    return np.asarray(shift_image(Image.fromarray(pixels), name, level, seed=SEED, row_id=ROW)).astype(float)


def rng_of(name: str) -> np.random.RandomState:
    return random_state(SEED, name, ROW)


def grey(value: int, side: int = 160) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


@pytest.mark.parametrize(("level", "scale"), list(enumerate([0.08, 0.12, 0.18, 0.26, 0.38], start=1)))
def test_gaussian_noise_is_normal_of_the_published_deviation(level: int, scale: float) -> None:
    noisy = shifted(grey(128), "gaussian_noise", level)
    inside = noisy[(noisy > 0) & (noisy < 255)]
    bounds = [(edge - 128) / (255 * scale) for edge in (0.5, 254.5)]
    expected = scipy.stats.truncnorm(*bounds, loc=128, scale=255 * scale)
    assert abs(inside.mean() - expected.mean()) < 0.6 and abs(inside.std() / expected.std() - 1) < 0.02
    assert abs((noisy == 0).mean() - scipy.stats.norm.cdf(bounds[0])) < 0.01
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(("level", "photons"), list(enumerate([60, 25, 12, 5, 3], start=1)))
def test_shot_noise_counts_photons(level: int, photons: int) -> None:
    counts = np.rint(shifted(grey(102), "shot_noise", level) * photons / 255)
    expected = scipy.stats.poisson(102 / 255 * photons)
    for count in range(photons):
        assert abs((counts == count).mean() - expected.pmf(count)) < 0.01
    assert abs((counts >= photons).mean() - expected.sf(photons - 1)) < 0.01


@pytest.mark.parametrize(("level", "share"), list(enumerate([0.03, 0.06, 0.09, 0.17, 0.27], start=1)))
def test_impulse_noise_hits_a_share_of_the_values(level: int, share: float) -> None:
    noisy = shifted(grey(100), "impulse_noise", level)
    assert set(np.unique(noisy)) == {0, 100, 255}
    assert abs((noisy != 100).mean() - share) < 0.005
    assert abs((noisy == 255).mean() - share / 2) < 0.005
    assert abs((noisy != 100).all(axis=2).mean() - share**3) < 0.005


@pytest.mark.parametrize(("level", "scale"), list(enumerate([0.15, 0.2, 0.35, 0.45, 0.6], start=1)))
def test_speckle_noise_grows_with_brightness(level: int, scale: float) -> None:
    for value in (20, 60):
        noisy = shifted(grey(value), "speckle_noise", level)
        inside = noisy[noisy > 0]
        expected = scipy.stats.truncnorm((0.5 - value) / (value * scale), np.inf, loc=value, scale=value * scale)
        assert abs(inside.std() / expected.std() - 1) < 0.03
    assert (shifted(grey(0), "speckle_noise", level) == 0).all()


@pytest.mark.parametrize(
    ("level", "radius", "edge"), [(1, 3, 0.1), (2, 4, 0.5), (3, 6, 0.5), (4, 8, 0.5), (5, 10, 0.5)]
)
def test_defocus_is_a_disc_of_the_radius(level: int, radius: int, edge: float) -> None:
    """Mean over a disc, whose edge a small Gaussian has smoothed, of pixels mirrored at the border."""
    pixels = photograph()
    reach = radius + 3
    disc = np.array(
        [[float(x * x + y * y <= radius * radius) for x in range(-reach, reach + 1)] for y in range(-reach, reach + 1)]
    )
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    gauss = np.exp(-(taps**2) / (2 * edge**2))
    gauss /= gauss.sum()
    for axis in (0, 1):
        disc = scipy.ndimage.convolve1d(disc, gauss, axis=axis)
    disc /= disc.sum()
    expected = np.stack(
        [scipy.ndimage.convolve(pixels[..., c].astype(float), disc, mode="mirror") for c in range(3)], axis=-1
    )
    inner = slice(reach, -reach)
    assert np.abs(shifted(pixels, "defocus_blur", level) - expected)[inner, inner].max() <= 0.51
    assert np.abs(shifted(pixels, "defocus_blur", level) - expected).mean() < 2


@pytest.mark.parametrize(("level", "sigma", "reach", "rounds"), [(1, 0.7, 1, 2), (3, 1, 2, 3), (5, 1.5, 4, 2)])
def test_glass_takes_pixels_from_neighbours(level: int, sigma: float, reach: int, rounds: int) -> None:
    pixels = photograph(20, 24)
    random = rng_of("glass_blur")

    def blur(values: np.ndarray) -> np.ndarray:
        taps = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
        weights = np.exp(-(taps**2) / (2 * sigma**2))
        weights /= weights.sum()
        for axis in (0, 1):
            padded = np.pad(values, [(len(taps) // 2,) * 2 if a == axis else (0, 0) for a in range(3)], mode="edge")
            values = sum(
                w * np.take(padded, np.arange(values.shape[axis]) + i, axis=axis) for i, w in enumerate(weights)
            )  # type: ignore[assignment]
        return values

    values = blur(pixels.astype(float))
    for _ in range(rounds):
        rows, columns = range(20 - reach, reach, -1), range(24 - reach, reach, -1)
        moves = random.randint(-reach, reach, size=(len(rows), len(columns), 2))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                right, down = moves[i, j]
                values[row, column] = values[row + down, column + right]
    assert np.abs(shifted(pixels, "glass_blur", level) - blur(values)).max() <= 0.51


def smeared(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """The weighted mean of copies shifted along a line, borders repeated."""
    height, width = values.shape[:2]
    total, weights = np.zeros(values.shape), 0.0
    for step in range(2 * radius + 1):
        weight = np.exp(-(step**2) / (2 * sigma**2))
        down = -int(np.ceil(step * np.sin(np.deg2rad(angle)) - 0.5))
        right = -int(np.ceil(step * np.cos(np.deg2rad(angle)) - 0.5))
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        total += weight * values[rows][:, columns]
        weights += weight
    return total / weights


@pytest.mark.parametrize(("level", "radius", "sigma"), [(1, 10, 3), (2, 15, 5), (3, 15, 8), (4, 15, 12), (5, 20, 15)])
def test_motion_is_a_mean_along_a_line(level: int, radius: int, sigma: float) -> None:
    pixels = photograph()
    angle = rng_of("motion_blur").uniform(-45, 45)
    assert (
        np.abs(shifted(pixels, "motion_blur", level) - smeared(pixels.astype(float), radius, sigma, angle)).max()
        <= 0.51
    )


def magnified(values: np.ndarray, factor: float) -> np.ndarray:
    height, width = values.shape[:2]
    tall, wide = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - tall) // 2, (width - wide) // 2
    middle = values[top : top + tall, left : left + wide]
    factors = (factor, factor) + (1,) * (values.ndim - 2)
    return scipy.ndimage.zoom(middle, factors, order=1)[:height, :width]


@pytest.mark.parametrize(
    ("level", "stop", "step"), [(1, 1.11, 0.01), (2, 1.16, 0.01), (3, 1.21, 0.02), (4, 1.26, 0.02), (5, 1.31, 0.03)]
)
def test_zoom_is_a_mean_of_magnifications(level: int, stop: float, step: float) -> None:
    pixels = photograph().astype(float)
    layers = [pixels, *(magnified(pixels, factor) for factor in np.arange(1, stop, step))]
    difference = np.abs(shifted(photograph(), "zoom_blur", level) - np.mean(layers, axis=0))
    assert difference.max() <= 1.5 and difference.mean() < 0.3


SNOW = {1: (0.1, 0.3, 3, 0.5, 10, 4, 0.8), 3: (0.55, 0.3, 4, 0.9, 12, 8, 0.7), 5: (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)}


@pytest.mark.parametrize("level", SNOW)
def test_snow_is_two_layers_of_flakes_over_a_whitened_scene(level: int) -> None:
    mean, spread, size, threshold, radius, sigma, kept = SNOW[level]
    pixels = photograph()
    random = rng_of("snow")
    flakes = magnified(mean + spread * random.standard_normal(pixels.shape[:2]), size)
    flakes[flakes < threshold] = 0
    flakes = smeared(np.clip(flakes, 0, 1), int(radius), sigma, random.uniform(-135, -45))
    scene = pixels / 255
    luminance = scene @ (0.299, 0.587, 0.114)
    scene = kept * scene + (1 - kept) * np.maximum(scene, (luminance * 1.5 + 0.5)[..., None])
    expected = np.clip(255 * (scene + flakes[..., None] + flakes[::-1, ::-1, None]), 0, 255)
    difference = np.abs(shifted(pixels, "snow", level) - expected)
    assert difference.mean() < 0.5 and np.quantile(difference, 0.99) < 4  # a flake at the threshold may fall either way


@pytest.mark.parametrize(
    ("level", "scene", "ice"), [(1, 1, 0.4), (2, 0.8, 0.6), (3, 0.7, 0.7), (4, 0.65, 0.7), (5, 0.6, 0.75)]
)
@pytest.mark.parametrize("size", [(60, 80), (200, 90), (150, 300)])
def test_frost_is_a_weighted_sum_with_a_part_of_a_picture(
    level: int, scene: float, ice: float, size: tuple[int, int], frost_pictures: dict[str, np.ndarray]
) -> None:
    height, width = size
    pixels = photograph(height, width)
    random = rng_of("frost")
    picture = Image.fromarray(frost_pictures[PICTURES[random.randint(5)]])
    scale = 1.1 * max(1, height / picture.height, width / picture.width)
    tall, wide = int(np.ceil(picture.height * scale)), int(np.ceil(picture.width * scale))
    top, left = (int(random.random_sample() * (room - side)) for room, side in ((tall, height), (wide, width)))
    large = np.asarray(picture.resize((wide, tall), Image.Resampling.BICUBIC)).astype(float)
    expected = np.clip(scene * pixels + ice * large[top : top + height, left : left + width], 0, 255)
    difference = np.abs(shifted(pixels, "frost", level) - expected)
    assert difference.mean() < 1.5


def test_frost_covers_the_whole_image_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    assert (shifted(np.zeros((300, 500, 3), np.uint8), "frost", 1).max(axis=2) > 0).mean() > 0.9
    monkeypatch.setenv("LMMS_EVAL_EMI_FROST", str(tmp_path))
    with pytest.raises(ShiftError, match="frost1.png"):
        shifted(photograph(), "frost", 1)


@pytest.mark.parametrize(("level", "thickness", "decay"), [(1, 1.5, 2), (3, 2.5, 1.7), (5, 3, 1.4)])
def test_fog_is_a_plasma_fractal(level: int, thickness: float, decay: float) -> None:
    pixels = photograph(30, 32)
    random = rng_of("fog")
    size, spread, step = 32, 100.0, 32
    heights = np.zeros((size, size))
    while step >= 2:
        half = step // 2
        cells = [(row, column) for row in range(0, size, step) for column in range(0, size, step)]

        def noise() -> dict:
            return dict(zip(cells, (spread * random.uniform(-spread, spread, len(cells))).tolist(), strict=True))  # noqa: B023

        middle, above, beside = noise(), noise(), noise()
        for row, column in cells:
            corners = [heights[(row + i) % size, (column + j) % size] for i in (0, step) for j in (0, step)]
            heights[row + half, column + half] = np.mean(corners) + middle[row, column]
        for row, column in cells:
            up, down = heights[(row - half) % size, column + half], heights[row + half, column + half]
            ends = heights[row, column], heights[row, (column + step) % size]
            heights[row, column + half] = np.mean([up, down, *ends]) + above[row, column]
        for row, column in cells:
            left, right = heights[row + half, (column - half) % size], heights[row + half, column + half]
            ends = heights[row, column], heights[(row + step) % size, column]
            heights[row + half, column] = np.mean([left, right, *ends]) + beside[row, column]
        step, spread = half, spread / decay
    clouds = (heights - heights.min()) / np.ptp(heights)
    brightest = pixels.max() / 255
    expected = 255 * (pixels / 255 + thickness * clouds[:30, :, None]) * brightest / (brightest + thickness)
    assert np.abs(shifted(pixels, "fog", level) - expected).max() <= 0.6


@pytest.mark.parametrize(("level", "added"), list(enumerate([0.1, 0.2, 0.3, 0.4, 0.5], start=1)))
def test_brightness_adds_to_the_value(level: int, added: float) -> None:
    pixels = photograph(20, 20)
    expected = [
        [[255 * c for c in colorsys.hsv_to_rgb(h, s, min(1, v + added))] for h, s, v in row]
        for row in [[colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in line] for line in pixels]
    ]
    assert np.abs(shifted(pixels, "brightness", level) - np.array(expected)).max() <= 1


@pytest.mark.parametrize(("level", "kept"), list(enumerate([0.4, 0.3, 0.2, 0.1, 0.05], start=1)))
def test_contrast_draws_to_each_channels_mean(level: int, kept: float) -> None:
    pixels = photograph()
    for channel in range(3):
        mean = sum(int(value) for value in pixels[..., channel].ravel()) / pixels[..., channel].size
        expected = kept * pixels[..., channel] + (1 - kept) * mean
        assert np.abs(shifted(pixels, "contrast", level)[..., channel] - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("level", "strength", "sigma", "reach"),
    [(1, 2, 0.7, 0.1), (2, 2, 0.08, 0.2), (3, 0.05, 0.01, 0.02), (5, 0.12, 0.01, 0.02)],
)
def test_elastic_is_an_affine_map_and_a_smooth_field(level: int, strength: float, sigma: float, reach: float) -> None:
    pixels = photograph()
    height, width = pixels.shape[:2]
    random = rng_of("elastic_transform")
    middle, arm = np.array([height // 2, width // 2]), height // 3
    corners = np.array([middle + arm, [middle[0] + arm, middle[1] - arm], middle - arm], dtype=float)
    moved = corners + random.uniform(-244 * reach, 244 * reach, size=corners.shape)
    affine = np.linalg.solve(np.column_stack([corners, np.ones(3)]), moved).T  # (x, y, 1) to (x, y)
    inverse = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    source = inverse @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])

    def sample(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
        return np.stack(
            [scipy.ndimage.map_coordinates(values[..., c], [rows, columns], order=1, mode=mode) for c in range(3)], -1
        ).reshape(values.shape)

    tilted = sample(pixels.astype(float), source[1], source[0], "mirror")
    fields = [
        scipy.ndimage.gaussian_filter(random.uniform(-1, 1, (height, width)), 244 * sigma, mode="reflect", truncate=3)
        * 244
        * strength
        for _ in range(2)
    ]
    expected = sample(tilted, (y + fields[1]).ravel(), (x + fields[0]).ravel(), "reflect")
    difference = np.abs(shifted(pixels, "elastic_transform", level) - expected)
    assert difference.mean() < 1.5


@pytest.mark.parametrize(("level", "block"), [(2, 2), (5, 4)])
def test_pixelate_averages_blocks(level: int, block: int) -> None:
    pixels = photograph()
    expected = pixels.reshape(60 // block, block, 80 // block, block, 3).mean(axis=(1, 3))
    expected = expected.repeat(block, axis=0).repeat(block, axis=1)
    assert np.abs(shifted(pixels, "pixelate", level) - expected).max() <= 1


@pytest.mark.parametrize(("level", "quality"), list(enumerate([25, 18, 15, 10, 7], start=1)))
def test_jpeg_has_the_quality(level: int, quality: int) -> None:
    import cv2

    pixels = photograph()
    _, file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = np.asarray(Image.open(io.BytesIO(file.tobytes())))
    assert np.abs(shifted(pixels, "jpeg_compression", level) - expected).mean() < 1


@pytest.mark.parametrize(("level", "degrees"), list(enumerate([5, 10, 15, 22, 30], start=1)))
def test_rotation_turns_about_the_centre(level: int, degrees: float) -> None:
    pixels = photograph(81, 101)
    expected = Image.fromarray(pixels).rotate(
        degrees if rng_of("rotation").uniform() < 0.5 else -degrees, Image.Resampling.BILINEAR
    )
    inside = np.hypot(*np.ogrid[-40:41, -50:51]) < 36  # what no corner reaches
    assert np.abs(shifted(pixels, "rotation", level) - np.asarray(expected, dtype=float))[inside].mean() < 1.5


@pytest.mark.parametrize(("level", "distortion"), list(enumerate([0.2, 0.3, 0.4, 0.5, 0.6], start=1)))
def test_perspective_moves_the_corners_inwards(level: int, distortion: float) -> None:
    pixels = photograph(81, 101)
    corners = np.array([(0, 0), (100, 0), (100, 80), (0, 80)], dtype=float)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    moved = corners + signs * distortion * np.array([101, 81]) / 2 * rng_of("perspective").uniform(size=(4, 2))
    # PIL's eight numbers map a point of the output to one of the input.
    rows, known = [], []
    for (u, v), (x, y) in zip(moved, corners, strict=True):
        rows += [(u, v, 1, 0, 0, 0, -u * x, -v * x), (0, 0, 0, u, v, 1, -u * y, -v * y)]
        known += [x, y]
    numbers = np.linalg.solve(np.array(rows), np.array(known))
    # PIL looks at the middle of a pixel: shift by half a pixel on both sides.
    matrix = np.append(numbers, 1).reshape(3, 3)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = half @ matrix @ np.linalg.inv(half)
    flat = (matrix / matrix[2, 2]).ravel()[:8]
    expected = Image.fromarray(pixels).transform(
        (101, 81), Image.Transform.PERSPECTIVE, flat, Image.Resampling.BILINEAR
    )
    seen = Image.new("L", (101, 81), 255).transform((101, 81), Image.Transform.PERSPECTIVE, flat)
    inside = scipy.ndimage.binary_erosion(np.asarray(seen) == 255, iterations=2)
    assert inside.mean() > 0.2
    difference = np.abs(shifted(pixels, "perspective", level) - np.asarray(expected, dtype=float))[inside]
    assert difference.mean() < 1.5


@pytest.mark.parametrize(("level", "share"), list(enumerate([0.86, 0.79, 0.73, 0.67, 0.61], start=1)))
def test_crop_shows_a_window_as_large_as_the_whole(level: int, share: float) -> None:
    rows, columns = np.mgrid[:100, :200]
    pixels = np.stack([rows * 2, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)  # tells where it was
    out = shifted(pixels, "crop", level)
    assert out.shape == pixels.shape
    random = rng_of("crop")
    top, left = (
        round((100 - round(100 * share)) * random.uniform()),
        round((200 - round(200 * share)) * random.uniform()),
    )
    middle = out[5:-5, 5:-5]
    places = np.arange(100) * share + (share - 1) / 2 + top, np.arange(200) * share + (share - 1) / 2 + left
    assert np.abs(middle[..., 0] - 2 * places[0][5:-5, None]).max() < 2
    assert np.abs(middle[..., 1] - places[1][None, 5:-5]).max() < 2


@pytest.mark.parametrize(("level", "side"), list(enumerate([30, 20, 16, 13, 10], start=1)))
def test_rescale_keeps_the_waves_that_a_small_copy_can_hold(level: int, side: int) -> None:
    def amplitude_left(waves: int) -> float:
        wave = np.cos(2 * np.pi * waves * (np.arange(200) + 0.5) / 200)
        pixels = np.rint(128 + 60 * wave)[None, :, None].repeat(200, axis=0).repeat(3, axis=2).astype(np.uint8)
        row = shifted(pixels, "rescale", level)[100, :, 0]
        return float((row - 128) @ wave / (60 * wave @ wave))

    assert amplitude_left(side // 5) > 0.8
    assert abs(amplitude_left(2 * side)) < 0.02


@pytest.mark.parametrize(("level", "share"), list(enumerate([0.17, 0.26, 0.34, 0.42, 0.5], start=1)))
def test_occlusion_hides_a_share_of_the_cells(level: int, share: float) -> None:
    pixels = np.full((80, 160, 3), 9, dtype=np.uint8)
    out = shifted(pixels, "occlusion", level)
    cells = out.reshape(8, 10, 8, 20, 3)
    assert (cells == cells[:, :1, :, :1]).all()  # whole cells
    hidden = cells[:, 0, :, 0, 0] == 128
    assert hidden.sum() == round(64 * share)
    assert (cells[:, 0, :, 0, 0][~hidden] == 9).all()
    if level > 1:  # a higher level hides what a lower one does
        lower = shifted(pixels, "occlusion", level - 1).reshape(8, 10, 8, 20, 3)[:, 0, :, 0, 0] == 128
        assert (hidden | ~lower).all()


@pytest.mark.parametrize("name", VISUAL)
def test_randomness_is_the_seeds_and_the_rows(name: str) -> None:
    image = Image.fromarray(photograph())
    first = shift_image(image, name, 3, seed=1, row_id=5)
    assert shift_image(image, name, 3, seed=1, row_id=5).tobytes() == first.tobytes()
    others = [shift_image(image, name, 3, seed=seed, row_id=row).tobytes() for seed, row in ((1, 6), (2, 5))]
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "rescale", "jpeg_compression"}
    if name == "rotation":  # to one of two sides
        rows = range(20)
        assert len({shift_image(image, name, 3, seed=1, row_id=row).tobytes() for row in rows}) == 2
        return
    random = name not in fixed
    assert all((other != first.tobytes()) == random for other in others)
    assert np.asarray(image).tobytes() == photograph().tobytes()  # the original is as it was


@pytest.mark.parametrize("name", [name for name in VISUAL if name not in {"elastic_transform", "frost", "glass_blur"}])
def test_a_higher_level_is_further_from_the_image(name: str) -> None:
    pixels = photograph(96, 96)
    distances = [np.square(shifted(pixels, name, level) - pixels).mean() for level in (1, 3, 5)]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", VISUAL)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_images_of_any_mode(name: str, mode: str) -> None:
    image = Image.new(mode, (40, 33), 1) if mode in {"I;16", "I", "F", "1"} else Image.new("RGB", (40, 33), "teal")
    if mode == "LAB":
        image = Image.new("LAB", (40, 33))
    out = shift_image(image if image.mode == mode else image.convert(mode), name, 2)
    assert out.mode == "RGB" and out.size == (40, 33)


@pytest.mark.parametrize("name", VISUAL)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (7, 5), (31, 17), (3000, 2)])
@pytest.mark.parametrize("level", [1, 2, 5])
def test_images_of_any_size(name: str, size: tuple[int, int], level: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    assert shift_image(image, name, level).size == size


def test_exif_orientation_is_obeyed() -> None:
    import datasets

    image = Image.fromarray(photograph(24, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    upright = datasets.Image().decode_example({"bytes": file.getvalue(), "path": None})
    assert upright.size == (24, 40)
    shifted_image = shift_image(Image.open(io.BytesIO(file.getvalue())), "contrast", 1)
    assert shifted_image.tobytes() == shift_image(upright, "contrast", 1).tobytes()


def test_sixteen_bits_are_scaled_and_more_are_refused() -> None:
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    eight = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    assert shift_image(Image.fromarray(levels), "fog", 1).tobytes() == shift_image(eight, "fog", 1).tobytes()
    with pytest.raises(RefusedError, match="mode I and values from 0 to 1e\\+06"):
        shift_image(Image.fromarray(np.full((4, 4), 1_000_000, np.int32) * np.eye(4, dtype=np.int32)), "fog", 1)


def test_what_cannot_be_shifted_is_refused_with_a_reason() -> None:
    with pytest.raises(RefusedError, match="9000 x 10 pixels"):
        shift_image(Image.new("RGB", (9000, 10)), "fog", 1)
    with pytest.raises(ShiftError, match="Did you mean defocus_blur"):
        shift_image(Image.new("RGB", (9, 9)), "defocus_blurr", 1)
    with pytest.raises(ShiftError, match="1 to 5, got 6"):
        shift_image(Image.new("RGB", (9, 9)), "defocus_blur", 6)
    with pytest.raises(ShiftError, match="--textual keyboard"):
        shift_image(Image.new("RGB", (9, 9)), "keyboard", 1)
