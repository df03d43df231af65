"""Any network as an extractor: what it is given, what it may give, and what it is called."""

import numpy as np
import pytest
import torch
from torch import nn

from ditwright.errors import UserError
from ditwright.metrics.features import ModuleExtractor, Seen, describe, digest, frechet_name, scaled


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class Means(nn.Module):
    """Weighted means of the three colours."""

    def __init__(self, weights=((1.0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))):
        super().__init__()
        self.mix = nn.Linear(3, len(weights), bias=False)
        self.mix.weight.data = torch.tensor(weights)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.mix(x.mean((2, 3))))


def test_a_module_sees_black_as_minus_one_and_white_as_one():
    extract = ModuleExtractor(Means(), "means")
    images = np.stack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)])
    found = extract(images)
    np.testing.assert_allclose(found.pool, [[-1, -1, -1, -3], [1, 1, 1, 3]], atol=1e-6)
    assert found.pool.dtype == np.float32
    assert found.spatial is None
    assert found.probabilities is None
    assert extract.feature_size == 4


def test_its_name_carries_its_weights():
    one, same, other = Means(), Means(), Means(((1.0, 0, 0), (0, 1, 0)))
    names = [ModuleExtractor(m, "means").name for m in (one, same, other)]
    assert names[0] == names[1] == f"means-{digest(one.state_dict())[:8]}" != names[2]
    assert digest(one.state_dict()) == digest({name: w.double() for name, w in one.state_dict().items()})
    assert describe(ModuleExtractor(one, "means")) == {"extractor": names[0], "feature_size": 4}


@pytest.mark.parametrize(
    ("extractor", "name"),
    [
        ("inception-v3-tf-6726825d", "FID"),
        ("inception-v3-1a2b3c4d", "FD (inception-v3-1a2b3c4d)"),
        ("dinov2-vitl14-1a2b3c4d", "FD-DINOv2"),
        ("dinov2-vitb14-1a2b3c4d", "FD (dinov2-vitb14-1a2b3c4d)"),
        ("judge-digits-1a2b3c4d", "FD (judge-digits-1a2b3c4d)"),
    ],
)
def test_only_the_published_inception_gives_a_fid(extractor, name):
    assert frechet_name(extractor) == name


def test_grey_is_colour_of_equal_parts_and_size_is_a_side():
    extract = ModuleExtractor(Means(), "means", size=5)
    grey = pictures(3, 8, 7, 1)
    np.testing.assert_array_equal(extract(grey).pool, extract(grey.repeat(3, -1)).pool)
    assert scaled(grey, size=(5, 5)).shape == (3, 3, 5, 5)
    np.testing.assert_allclose(scaled(np.full((1, 9, 9, 1), 51, np.uint8), size=(4, 30)), -0.6, atol=1e-6)
    np.testing.assert_array_equal(
        scaled(grey, channels=1, size=(8, 7))[:, 0], grey[..., 0].astype(np.float32) / 127.5 - 1
    )


def test_features_do_not_depend_on_what_the_caller_computes_in():
    images, net = pictures(4, 16, 16, 3), nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    extract = ModuleExtractor(net.train(), "net")
    plain = extract(images).pool
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(extract(images).pool, plain)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not net.training
    np.testing.assert_array_equal(ModuleExtractor(Means(), "means")(images).pool[:, 3], extract_sum(images))


def extract_sum(images):
    return ModuleExtractor(Means(((1.0, 1, 1),)), "sum")(images).pool[:, 0]


def test_a_module_may_see_more_than_one_thing():
    class More(nn.Module):
        def forward(self, x):
            pool = x.mean((2, 3))
            return Seen(pool, x[:, 0].flatten(1), pool.softmax(-1))

    found = ModuleExtractor(More(), "more", size=4)(pictures(2, 9, 9, 3))
    assert (found.pool.shape, found.spatial.shape, found.probabilities.shape) == ((2, 3), (2, 16), (2, 3))
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)


def test_maps_are_no_features():
    with pytest.raises(UserError, match="let it pool over space"):
        ModuleExtractor(nn.Conv2d(3, 8, 3), "maps")(pictures(2, 8, 8, 3))
    with pytest.raises(UserError, match=r"\(2, 192\) for 2 pictures; features are \(2, 12288\)"):
        ModuleExtractor(nn.Flatten(), "pixels")(pictures(2, 8, 8, 3))
    assert ModuleExtractor(nn.Flatten(), "pixels", size=8)(pictures(2, 8, 8, 3)).pool.shape == (2, 192)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), pictures(2, 3, 8, 8), pictures(0, 8, 8, 3)],
)
def test_anything_but_pictures_is_refused(images):
    with pytest.raises(UserError, match=r"features are made of uint8 pictures \(B, H, W, 1 or 3\); got"):
        ModuleExtractor(Means(), "means")(images)
