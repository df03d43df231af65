"""LightningDiT: our network against the description of theirs, written out plainly under their names."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ditwright import SAMPLERS, convert
from ditwright.diffusion.grid import uniform
from ditwright.diffusion.sampler import last

WIDTH, HEADS, DEPTH, CHANNELS, SIDE, CLASSES, HIDDEN = 48, 3, 3, 5, 6, 7, 128
HEAD = WIDTH // HEADS


def weights(*, rope, swiglu, rms, qk_norm, wo_shift=False, patch=1):
    """Random weights for a picture of SIDE x SIDE patches."""
    g = torch.Generator().manual_seed(0)
    shapes = {"x_embedder.proj": (WIDTH, CHANNELS, patch, patch), "t_embedder.mlp.0": (WIDTH, 256)}
    shapes |= {"t_embedder.mlp.2": (WIDTH, WIDTH), "final_layer.linear": (patch * patch * CHANNELS, WIDTH)}
    shapes |= {"final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH)}
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH), f"blocks.{i}.attn.proj": (WIDTH, WIDTH)}
        shapes |= {f"blocks.{i}.adaLN_modulation.1": ((4 if wo_shift else 6) * WIDTH, WIDTH)}
        first, second = ("w12", "w3") if swiglu else ("fc1", "fc2")
        shapes |= {f"blocks.{i}.mlp.{first}": (HIDDEN * (2 if swiglu else 1), WIDTH)}
        shapes |= {f"blocks.{i}.mlp.{second}": (WIDTH, HIDDEN)}
    state = {f"{name}.weight": 0.2 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    state |= {f"{name}.bias": 0.2 * torch.randn(shape[0], generator=g) for name, shape in shapes.items()}
    state["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=g)
    for i in range(DEPTH):
        norms = {"norm1": WIDTH, "norm2": WIDTH} if rms else {}
        norms |= {"attn.q_norm": HEAD, "attn.k_norm": HEAD} if qk_norm else {}
        state |= {f"blocks.{i}.{name}.weight": 1 + 0.2 * torch.randn(n, generator=g) for name, n in norms.items()}
    if rms:
        state["final_layer.norm_final.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=g)
    state["pos_embed"] = torch.zeros(1, SIDE * SIDE, WIDTH)
    for row, column, k in itertools.product(range(SIDE), range(SIDE), range(WIDTH // 4)):
        for half, place in enumerate((column, row)):
            angle, at = place / 10_000 ** (k / (WIDTH // 4)), half * WIDTH // 2 + k
            state["pos_embed"][0, row * SIDE + column, at] = math.sin(angle)
            state["pos_embed"][0, row * SIDE + column, at + WIDTH // 4] = math.cos(angle)
    if rope:
        angles = torch.zeros(SIDE * SIDE, HEAD)
        for row, column, k in itertools.product(range(SIDE), range(SIDE), range(HEAD)):
            place = row if k < HEAD // 2 else column
            angles[row * SIDE + column, k] = place / 10_000 ** ((k % (HEAD // 2)) // 2 * 2 / (HEAD // 2))
        state |= {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
    return state


def velocity(w, x, tau, label, patch=1):
    """Their forward pass; tau = 0 is noise, tau = 1 the picture."""

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, h):
        if f"{name}.weight" in w:
            return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def turned(h):  # (B, H, L, d): each pair of channels by its angle
        if "feat_rope.freqs_cos" not in w:
            return h
        a, b = h[..., ::2], h[..., 1::2]
        across = torch.stack((-b, a), -1).reshape(h.shape)
        return h * w["feat_rope.freqs_cos"] + across * w["feat_rope.freqs_sin"]

    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch).flatten(2).mT + w["pos_embed"]
    frequencies = 10_000 ** (-torch.arange(128) / 128)
    features = torch.cat([(tau[:, None] * frequencies).cos(), (tau[:, None] * frequencies).sin()], -1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", features)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][label])[:, None]
    for i in range(DEPTH):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", c).split(WIDTH, -1)
        zero = torch.zeros_like(parts[0])
        parts = parts if len(parts) == 6 else (zero, *parts[:2], zero, *parts[2:])
        shift, scale, gate, shift2, scale2, gate2 = parts
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", h) * (1 + scale) + shift)
        q, k, v = qkv.unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        if f"blocks.{i}.attn.q_norm.weight" in w:
            q, k = norm(f"blocks.{i}.attn.q_norm", q), norm(f"blocks.{i}.attn.k_norm", k)
        scores = (turned(q) @ turned(k).mT / HEAD**0.5).softmax(-1)
        h = h + gate * linear(f"blocks.{i}.attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        m = norm(f"blocks.{i}.norm2", h) * (1 + scale2) + shift2
        if f"blocks.{i}.mlp.w12.weight" in w:
            opened, value = linear(f"blocks.{i}.mlp.w12", m).split(HIDDEN, -1)
            m = linear(f"blocks.{i}.mlp.w3", F.silu(opened) * value)
        else:
            m = linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", m), approximate="tanh"))
        h = h + gate2 * m
    shift, scale = linear("final_layer.adaLN_modulation.1", c).split(WIDTH, -1)
    h = linear("final_layer.linear", norm("final_layer.norm_final", h) * (1 + scale) + shift)
    rows = h.unflatten(1, (SIDE, SIDE)).unflatten(-1, (patch, patch, CHANNELS))  # (B, row, column, p, q, C)
    return rows.permute(0, 5, 1, 3, 2, 4).reshape(len(x), CHANNELS, SIDE * patch, SIDE * patch)


OPTIONS = [
    {"rope": True, "swiglu": True, "rms": True, "qk_norm": False},  # as released
    {"rope": True, "swiglu": True, "rms": True, "qk_norm": True},
    {"rope": False, "swiglu": True, "rms": False, "qk_norm": False},
    {"rope": True, "swiglu": False, "rms": False, "qk_norm": False},
    {"rope": False, "swiglu": False, "rms": True, "qk_norm": True},
    {"rope": True, "swiglu": True, "rms": True, "qk_norm": False, "patch": 2},
    {"rope": True, "swiglu": True, "rms": True, "qk_norm": False, "wo_shift": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(name for name, value in o.items() if value))
def test_the_network_computes_what_theirs_does(options):
    state, patch = weights(**options), options.get("patch", 1)
    denoiser = convert.load(state, family="lightningdit", heads=HEADS)
    x, tau, y = torch.randn(4, CHANNELS, SIDE * patch, SIDE * patch), torch.rand(4), torch.tensor([0, 3, 6, CLASSES])
    with torch.no_grad():
        ours = denoiser.net(x, tau, {"label": y})
        theirs = velocity(state, x, tau, y, patch)
        pred = denoiser(x, 1 - tau, {"label": y})  # our time runs the other way
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    torch.testing.assert_close(pred.x0 - pred.eps, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_euler_walks_as_their_ode_does():
    state = weights(**OPTIONS[0])
    denoiser, y = convert.load(state, family="lightningdit", heads=HEADS), torch.tensor([1, 4])
    x = theirs = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(10):
            theirs = theirs + 0.1 * velocity(state, theirs, torch.full((2,), step / 10), y)
        ours = last(SAMPLERS["euler"](lambda x, t: denoiser(x, t, {"label": y}), x, uniform(10), denoiser.process.path))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())
