"""DINOv2 and CLIP of the transformers package, as tiny networks in folders: nothing here leaves the machine."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from ditwright.errors import UserError
from ditwright.metrics.transformers import bicubic, clip, dinov2

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write(net, folder):
    """As save_pretrained does, without its bar."""
    folder.mkdir()
    net.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [type(net).__name__]}))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def spread(net):
    """Weights far enough from nothing that every one of them counts."""
    draw = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=draw)
    return net.eval()


@pytest.fixture(scope="module")
def dino():
    return spread(transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=70, patch_size=14)))


@pytest.fixture(scope="module")
def dino_folder(dino, tmp_path_factory):
    return write(dino, tmp_path_factory.mktemp("dino") / "net")


@pytest.fixture(scope="module")
def clip_net():
    text = {"vocab_size": 50, "intermediate_size": 16, "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = SMALL | {"image_size": 32, "patch_size": 8, "intermediate_size": 64}
    return spread(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    )


@pytest.fixture(scope="module")
def clip_folder(clip_net, tmp_path_factory):
    return write(clip_net, tmp_path_factory.mktemp("clip") / "net")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)


def pillow(images, side):
    resized = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return torch.tensor(np.stack(resized)).permute(0, 3, 1, 2) / 255


def test_dinov2_is_the_cls_token_at_224_with_positions_as_its_own_code_resamples_them(dino, dino_folder, images):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pillow(images, 224) - mean[:, None, None]) / std[:, None, None]
    table = dino.embeddings.position_embeddings.detach()[0]  # CLS, then 5 x 5
    grid = table[1:].reshape(5, 5, 32).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, scale_factor=(16 + 0.1) / 5, mode="bicubic")[0]
    positions = torch.cat([table[:1], grid.permute(1, 2, 0).reshape(256, 32)])
    with torch.no_grad():
        patches = dino.embeddings.patch_embeddings(pixels)  # (3, 256, 32)
        x = torch.cat([dino.embeddings.cls_token.expand(3, 1, 32), patches], 1) + positions
        for layer in dino.encoder.layer:
            x = layer(x)
        wanted = dino.layernorm(x)[:, 0]
        stock = dino(pixels).pooler_output
    extract = dinov2(dino_folder)
    found = extract(images).pool
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (stock - wanted).abs().max() > 1e-4  # transformers' own resampling is not the published one
    assert extract.feature_size == 32
    assert extract.name.startswith("dinov2-vit-32-14-")


def test_dinov2_at_its_own_size_is_stock_and_large_is_called_vitl14(tmp_path):
    config = transformers.Dinov2Config(**SMALL | {"hidden_size": 1024}, image_size=224, mlp_ratio=1)
    net = transformers.Dinov2Model(config).eval()
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    extract = dinov2(write(net, tmp_path / "net"))
    with torch.no_grad():
        wanted = net(extract.prepare(images)).pooler_output
    np.testing.assert_allclose(extract(images).pool, wanted, atol=1e-5)
    assert extract.name.startswith("dinov2-vitl14-")


def test_clip_is_the_projected_embedding_with_its_text_tower_or_without(clip_net, clip_folder, images, tmp_path):
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (pillow(images, 32) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        wanted = clip_net.visual_projection(clip_net.vision_model(pixels).pooler_output)
    extract = clip(clip_folder)
    np.testing.assert_allclose(extract(images).pool, wanted, atol=1e-5)
    assert extract.feature_size == 24
    clip_net.config.vision_config.projection_dim = 24
    alone = transformers.CLIPVisionModelWithProjection(clip_net.config.vision_config)
    alone.load_state_dict({k: v for k, v in clip_net.state_dict().items() if k.startswith("vis")})
    alone = clip(write(alone, tmp_path / "alone"))
    np.testing.assert_array_equal(alone(images).pool, extract(images).pool)
    assert alone.name == extract.name


def test_grey_is_repeated(images):
    options = {"side": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    grey = images[..., :1]
    np.testing.assert_array_equal(bicubic(grey, **options), bicubic(grey.repeat(3, -1), **options))


def test_weights_that_do_not_fit_are_refused(dino_folder, tmp_path):
    weights = load_file(dino_folder / "model.safetensors")
    for change, message in (
        ({"layernorm.weight": torch.ones(16)}, "mismatched .*layernorm.weight"),
        ({"layernorm.weight": None}, "missing layernorm.weight"),
    ):
        folder = tmp_path / message[:5]
        folder.mkdir()
        (folder / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
        kept = {k: v for k, v in (weights | change).items() if v is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=f"do not fit its config.json: {message}"):
            dinov2(folder)


def test_what_is_not_there_or_of_another_kind_is_refused(clip_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds a network of type 'clip'; dinov2: takes dinov2 or"):
        dinov2(clip_folder)
    with pytest.raises(UserError, match="no folder 'nowhere'; clip: takes a folder, or a name on the hub like openai/"):
        clip("nowhere")
    with pytest.raises(UserError, match="cannot be loaded as dinov2"):
        dinov2(tmp_path)
    hub = pytest.importorskip("huggingface_hub")

    def download(name, *, allow_patterns):
        raise hub.errors.LocalEntryNotFoundError("the hub cannot be reached\nand nothing is in the cache")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(UserError, match=r"\(the hub cannot be reached\); .* hf download facebook/dinov2-large --local"):
        dinov2("facebook/dinov2-large")


def test_a_name_on_the_hub_is_a_folder(dino_folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, *, allow_patterns: str(dino_folder))
    assert dinov2("someone/dino").name == dinov2(dino_folder).name
