"""The Inception of FID against a second writing of it, over weights in the published layout."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ditwright.errors import UserError
from ditwright.metrics import inception as module
from ditwright.metrics.inception import InceptionV3, inception, pytorch_fid, tensorflow


class Published(dict):
    """Weights by their published names, drawn when first asked for, and the network that asks for them."""

    draw = torch.Generator().manual_seed(0)

    def weight(self, name, *shape, low=0.0, high=1.0):
        if name not in self:
            self[name] = torch.empty(shape).uniform_(low, high, generator=self.draw)
        return self[name]

    def conv(self, x, name, out, kernel, stride=1, padding=(0, 0)):
        width = (6 / (x.shape[1] * kernel[0] * kernel[1])) ** 0.5
        weight = self.weight(f"{name}.conv.weight", out, x.shape[1], *kernel, low=-width, high=width)
        scale = self.weight(f"{name}.bn.weight", out, low=0.8, high=1.2)
        shift = self.weight(f"{name}.bn.bias", out, low=-0.2, high=0.2)
        mean = self.weight(f"{name}.bn.running_mean", out, low=-0.2, high=0.2)
        var = self.weight(f"{name}.bn.running_var", out, low=0.6, high=1.4)
        x = F.conv2d(x, weight, stride=stride, padding=padding)
        each = (slice(None), None, None)
        return ((x - mean[each]) / (var[each] + 0.001).sqrt() * scale[each] + shift[each]).clamp(min=0)

    def one(self, x, name, out):
        return self.conv(x, name, out, (1, 1))

    def three(self, x, name, out):
        return self.conv(x, name, out, (3, 3), padding=(1, 1))

    def row(self, x, name, out, n=7):
        return self.conv(x, name, out, (1, n), padding=(0, n // 2))

    def column(self, x, name, out, n=7):
        return self.conv(x, name, out, (n, 1), padding=(n // 2, 0))

    def a(self, x, name, pooled):
        five = self.conv(self.one(x, f"{name}.branch5x5_1", 48), f"{name}.branch5x5_2", 64, (5, 5), padding=(2, 2))
        three = self.three(self.one(x, f"{name}.branch3x3dbl_1", 64), f"{name}.branch3x3dbl_2", 96)
        three = self.three(three, f"{name}.branch3x3dbl_3", 96)
        pool = self.one(mean_inside(x), f"{name}.branch_pool", pooled)
        return torch.cat([self.one(x, f"{name}.branch1x1", 64), five, three, pool], 1)

    def c(self, x, name, width):
        seven = self.row(self.one(x, f"{name}.branch7x7_1", width), f"{name}.branch7x7_2", width)
        seven = self.column(seven, f"{name}.branch7x7_3", 192)
        twice = self.column(self.one(x, f"{name}.branch7x7dbl_1", width), f"{name}.branch7x7dbl_2", width)
        twice = self.column(self.row(twice, f"{name}.branch7x7dbl_3", width), f"{name}.branch7x7dbl_4", width)
        twice = self.row(twice, f"{name}.branch7x7dbl_5", 192)
        pool = self.one(mean_inside(x), f"{name}.branch_pool", 192)
        return torch.cat([self.one(x, f"{name}.branch1x1", 192), seven, twice, pool], 1)

    def e(self, x, name, pool):
        three = self.one(x, f"{name}.branch3x3_1", 384)
        twice = self.three(self.one(x, f"{name}.branch3x3dbl_1", 448), f"{name}.branch3x3dbl_2", 384)
        parts = [
            self.one(x, f"{name}.branch1x1", 320),
            self.row(three, f"{name}.branch3x3_2a", 384, 3),
            self.column(three, f"{name}.branch3x3_2b", 384, 3),
            self.row(twice, f"{name}.branch3x3dbl_3a", 384, 3),
            self.column(twice, f"{name}.branch3x3dbl_3b", 384, 3),
            self.one(pool(x), f"{name}.branch_pool", 192),
        ]
        return torch.cat(parts, 1)

    @torch.no_grad()
    def run(self, x):
        x = self.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
        x = self.three(self.conv(x, "Conv2d_2a_3x3", 32, (3, 3)), "Conv2d_2b_3x3", 64)
        x = F.max_pool2d(x, 3, 2)
        x = self.conv(self.one(x, "Conv2d_3b_1x1", 80), "Conv2d_4a_3x3", 192, (3, 3))
        x = F.max_pool2d(x, 3, 2)
        x = self.a(self.a(self.a(x, "Mixed_5b", 32), "Mixed_5c", 64), "Mixed_5d", 64)
        small = self.conv(x, "Mixed_6a.branch3x3", 384, (3, 3), 2)
        double = self.three(self.one(x, "Mixed_6a.branch3x3dbl_1", 64), "Mixed_6a.branch3x3dbl_2", 96)
        double = self.conv(double, "Mixed_6a.branch3x3dbl_3", 96, (3, 3), 2)
        x = torch.cat([small, double, F.max_pool2d(x, 3, 2)], 1)
        x = self.c(self.c(x, "Mixed_6b", 128), "Mixed_6c", 160)
        spatial = self.one(x, "Mixed_6d.branch1x1", 192)[:, :7]
        x = self.c(self.c(x, "Mixed_6d", 160), "Mixed_6e", 192)
        three = self.conv(self.one(x, "Mixed_7a.branch3x3_1", 192), "Mixed_7a.branch3x3_2", 320, (3, 3), 2)
        seven = self.row(self.one(x, "Mixed_7a.branch7x7x3_1", 192), "Mixed_7a.branch7x7x3_2", 192)
        seven = self.column(seven, "Mixed_7a.branch7x7x3_3", 192)
        seven = self.conv(seven, "Mixed_7a.branch7x7x3_4", 192, (3, 3), 2)
        x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        x = self.e(self.e(x, "Mixed_7b", mean_inside), "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))
        pool = x.mean((2, 3))
        weight = self.weight("fc.weight", 1008, 2048, low=-0.05, high=0.05)
        bias = self.weight("fc.bias", 1008, low=-1, high=1)
        return SimpleNamespace(pool=pool, spatial=spatial, unbiased=pool @ weight.T, bias=bias)


def mean_inside(x):
    """Means of 3 x 3 over the places that exist."""
    ones = torch.ones(1, 1, *x.shape[2:])
    return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)


def by_places(images):
    """TensorFlow 1's bilinear, in float64 from its definition."""
    height, width = images.shape[1:3]
    rows, columns = np.arange(299) * height / 299, np.arange(299) * width / 299
    y, x = rows.astype(int), columns.astype(int)
    dy, dx = (rows - y)[:, None, None], (columns - x)[:, None]
    below, right = np.minimum(y + 1, height - 1), np.minimum(x + 1, width - 1)
    p = images.astype(np.float64)
    upper = p[:, y][:, :, x] * (1 - dx) + p[:, y][:, :, right] * dx
    lower = p[:, below][:, :, x] * (1 - dx) + p[:, below][:, :, right] * dx
    return torch.from_numpy(((upper * (1 - dy) + lower * dy - 128) / 128).astype(np.float32)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def published(images, tmp_path_factory):
    weights = Published()
    seen, path = weights.run(by_places(images)), tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save(dict(weights), path)
    return SimpleNamespace(weights=dict(weights), seen=seen, path=path)


@pytest.fixture(scope="module")
def extract(published):
    return inception(published.path)


def test_all_that_it_sees_is_what_the_second_writing_sees(published, extract, images):
    found, seen = extract(images), published.seen
    np.testing.assert_allclose(found.pool, seen.pool, rtol=1e-3, atol=1e-4 * float(seen.pool.max()))
    assert found.pool.std(0).max() > 1e-3 * found.pool.max()  # the two pictures differ
    maps = found.spatial.reshape(2, 17, 17, 7)  # height, width, channel
    np.testing.assert_allclose(maps, seen.spatial.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4 * float(seen.spatial.max()))
    np.testing.assert_allclose(found.probabilities, seen.unbiased.softmax(-1), atol=1e-4)
    logits = extract.module.logits(torch.from_numpy(found.pool))
    np.testing.assert_allclose(logits, seen.unbiased + seen.bias, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert extract.feature_size == found.pool.shape[1] == 2048
    assert found.spatial.shape == (2, 2023)


def test_it_has_as_many_weights_as_inception_v3_without_its_side_branch():
    """torchvision documents 27,161,264 with it and 1000 classes; it has 3,326,696, and 8 classes more have 8 x 2049."""
    with torch.device("meta"):
        net = InceptionV3()
    assert sum(p.numel() for p in net.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049 == 23_850_960
    assert sum(isinstance(part, torch.nn.Conv2d) for part in net.modules()) == 94


def test_pictures_are_prepared_as_the_graph_or_as_pytorch_fid_does(images):
    np.testing.assert_allclose(tensorflow(images), by_places(images), atol=1e-5)
    full = np.random.default_rng(1).integers(0, 256, (1, 299, 299, 1), np.uint8)
    np.testing.assert_array_equal(tensorflow(full)[0, 2], (full[0, ..., 0].astype(np.float32) - 128) / 128)
    np.testing.assert_allclose(pytorch_fid(full)[0, 1], full[0, ..., 0] / 127.5 - 1, atol=1e-6)
    ramp = np.arange(0, 256, 5, dtype=np.uint8)[None, None, :, None].repeat(52, 1)  # its centre stays where it is
    assert pytorch_fid(ramp).mean() == pytest.approx(0, abs=1e-3)


def test_its_name_is_the_published_one_for_the_published_file_alone(published, extract, monkeypatch, tmp_path, images):
    assert extract.name.startswith("inception-v3-")
    assert not extract.name.startswith("inception-v3-tf")
    copy = tmp_path / "copy.safetensors"
    save_file(published.weights | {"Mixed_7c.branch_pool.bn.num_batches_tracked": torch.tensor(7)}, copy)
    again = inception(copy, prepare="pytorch-fid")
    assert again.name == extract.name.replace("inception-v3-", "inception-v3-pytorch-fid-")
    assert not np.allclose(again(images).pool, extract(images).pool)
    digits = hashlib.sha256(published.path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(module, "PUBLISHED", digits)
    assert inception(published.path).name == f"inception-v3-tf-{digits}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "fc.bias"}, "lacks the key for 'fc.bias'"),
        (lambda w: w | {"AuxLogits.fc.bias": torch.zeros(3)}, "no place for the checkpoint's key 'AuxLogits.fc.bias'"),
        (lambda w: w | {"fc.weight": torch.zeros(1000, 2048)}, r"shape \(1000, 2048\)"),
    ],
)
def test_other_weights_are_refused(published, tmp_path, change, message):
    torch.save(change(published.weights), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        inception(tmp_path / "w.pth")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file of weights 'nowhere.pth'; fetch https://github.com/mseitzer"):
        inception("nowhere.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(
        UserError, match=r"cannot be read as plain weights \(Weights only load failed\); nothing else is unpickled"
    ):
        inception(tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"unknown preparation 'pil'; known: pytorch-fid, tensorflow"):
        inception(tmp_path / "text.pth", prepare="pil")


def test_weights_come_from_the_hub_by_owner_name_and_file(published, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "someone/inception":
            raise hub.errors.LocalEntryNotFoundError("the hub cannot be reached\nand nothing is in the cache")
        return str(published.path.parent)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert inception("someone/inception/published.pth").feature_size == 2048
    assert asked == [("someone/inception", ["published.pth"])]
    with pytest.raises(
        UserError, match=r"'no/one' is not here .*\(the hub cannot be reached\); fetch https://.*name it"
    ):
        inception("no/one/published.pth")
    with pytest.raises(UserError, match=r"no file of weights 'someone/inception/other\.pth'"):
        inception("someone/inception/other.pth")
