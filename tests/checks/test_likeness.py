import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity
from torch import Tensor

from vaeaudit.checks.likeness import ms_ssim
from vaeaudit.errors import DataError, UnsupportedError

UNIT = (0.0, 1.0)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth random images in [0, 1]."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2).to(dtype)


def noisy(image: Tensor, stddev: float, seed: int = 1) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (image + stddev * noise.to(image.dtype)).clamp(0, 1)


def by_hand(a: np.ndarray, b: np.ndarray, width: float) -> tuple[float, int]:
    """MS-SSIM of two grey images as Wang et al. print it, and the scales used."""
    offsets = np.arange(-5, 6)
    bell = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    luminance, contrast_structure = [], []
    while min(a.shape) >= 11 and len(luminance) < 5:
        mean_a, mean_b, aa, bb, ab = (convolve2d(i, window, mode="valid") for i in (a, b, a * a, b * b, a * b))
        variances = aa - mean_a**2 + bb - mean_b**2
        cs = (2 * (ab - mean_a * mean_b) + c2) / (variances + c2)
        contrast_structure.append(cs.mean())
        luminance.append(((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * cs).mean())
        if a.shape[0] % 2:
            a, b = (np.vstack([i, i[-1:]]) for i in (a, b))
        if a.shape[1] % 2:
            a, b = (np.hstack([i, i[:, -1:]]) for i in (a, b))
        a, b = ((i[::2, ::2] + i[1::2, ::2] + i[::2, 1::2] + i[1::2, 1::2]) / 4 for i in (a, b))
    used = len(luminance)
    powers = np.array(weights[:used]) * sum(weights) / sum(weights[:used])
    factors = np.maximum([*contrast_structure[:-1], luminance[-1]], 0)
    return float(np.prod(factors**powers)), used


@pytest.mark.parametrize(
    ("height", "width", "scales"),
    [
        *((side, side, scales) for side, scales in ((11, 1), (20, 1), (21, 2), (28, 2), (32, 2), (64, 3), (192, 5))),
        *((28, 90, 2), (41, 47, 3), (88, 95, 4), (161, 170, 5)),
    ],
)
def test_ms_ssim_is_what_the_formula_gives_by_hand(height: int, width: int, scales: int) -> None:
    a = images(3, 1, height, width)
    b = noisy(a, 0.05)
    found = ms_ssim(a, b, UNIT)
    assert found.scales == scales
    assert found.estimator == f"MS-SSIM, {scales} of 5 scales"
    for value, one, other in zip(found.value, a, b, strict=True):
        expected, used = by_hand(one[0].numpy(), other[0].numpy(), 1.0)
        assert used == scales
        assert float(value) == pytest.approx(expected, rel=1e-9)
        assert 0 < expected < 1


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_equal_images_have_likeness_one_flat_ones_too(size: int, dtype: torch.dtype, tolerance: float) -> None:
    a = torch.cat([images(2, 3, size, size, dtype=dtype), torch.zeros(1, 3, size, size, dtype=dtype)])
    found = ms_ssim(a, a.clone(), UNIT).value
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.ones(3, dtype=dtype), rtol=0, atol=tolerance)


def test_likeness_is_symmetric_and_falls_as_noise_grows() -> None:
    a = images(4, 3, 32, 32)
    one_way, back = ms_ssim(a, noisy(a, 0.1), UNIT).value, ms_ssim(noisy(a, 0.1), a, UNIT).value
    torch.testing.assert_close(one_way, back, rtol=1e-12, atol=0)
    values = torch.stack([ms_ssim(a, noisy(a, stddev), UNIT).value for stddev in (0, 0.01, 0.03, 0.1, 0.3)])
    assert (values[1:] < values[:-1]).all()
    assert (values >= 0).all()


def test_likeness_does_not_depend_on_how_the_range_is_written() -> None:
    a = images(3, 1, 28, 28)
    b = noisy(a, 0.1)
    expected = ms_ssim(a, b, UNIT).value
    for low, high in ((-1.0, 1.0), (0.0, 255.0)):
        found = ms_ssim(low + (high - low) * a, low + (high - low) * b, (low, high)).value
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_likeness_of_images_with_a_range_for_each_channel_is_that_of_their_colours() -> None:
    a = images(2, 3, 28, 28)
    b = noisy(a, 0.1)
    mean, stddev = (a.new_tensor(values).reshape(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.2, 0.3, 0.4]))
    spans = tuple((float(-m / s), float((1 - m) / s)) for m, s in zip(mean.flatten(), stddev.flatten(), strict=True))
    found = ms_ssim((a - mean) / stddev, (b - mean) / stddev, spans).value
    torch.testing.assert_close(found, ms_ssim(a, b, UNIT).value, rtol=1e-9, atol=0)


def test_each_pair_is_compared_apart_and_opposite_structure_counts_as_zero() -> None:
    a = images(3, 1, 28, 28)
    b = noisy(a, 0.1)
    together = ms_ssim(a, b, UNIT).value
    apart = torch.cat([ms_ssim(a[k : k + 1], b[k : k + 1], UNIT).value for k in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)
    assert (ms_ssim(a, 1 - a, UNIT).value == 0).all()


def test_what_cannot_be_compared_is_refused_in_one_sentence() -> None:
    a = images(2, 1, 28, 28)
    with pytest.raises(DataError, match=r"batches of images.*\(2, 1, 28, 28\).*\(1, 1, 28, 28\)"):
        ms_ssim(a, a[:1], UNIT)
    with pytest.raises(DataError, match="batches of images"):
        ms_ssim(a.flatten(1), a.flatten(1), UNIT)
    with pytest.raises(DataError, match=r"floating-point type.*uint8"):
        ms_ssim(a.to(torch.uint8), a.to(torch.uint8), UNIT)
    with pytest.raises(DataError, match=r"lo < hi, but \[0, inf\) came"):
        ms_ssim(a, a, (0.0, math.inf))
    with pytest.raises(UnsupportedError, match=r"at least 11 pixels a side.*28 x 10"):
        ms_ssim(a[..., :10], a[..., :10], UNIT)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 64, 48), (1, 11, 11), (3, 12, 200)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ssim_is_that_of_scikit_image(
    channels: int, height: int, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    a = images(4, channels, height, width, dtype=dtype)
    b = torch.cat([noisy(a[:2], 0.02), noisy(a[2:], 0.3)])
    expected = [
        structural_similarity(
            one.double().numpy(),
            other.double().numpy(),
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for one, other in zip(a, b, strict=True)
    ]
    assert ms_ssim(a, b, UNIT).ssim.tolist() == pytest.approx(expected, abs=tolerance)


def test_images_that_differ_by_one_bit_have_a_similarity_that_tells() -> None:
    a = images(1, 1, 28, 28)
    b = a.clone()
    b[0, 0, 14, 14] = torch.nextafter(b[0, 0, 14, 14], b.new_tensor(2.0))
    assert float(ms_ssim(a, a, UNIT).ssim) == 1.0
    c = a.clone()
    c[0, 0, 14, 14] += 1e-6
    lost = 1 - float(ms_ssim(a, c, UNIT).ssim)
    assert 0 < lost < 1e-10
