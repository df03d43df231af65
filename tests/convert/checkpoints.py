"""Random weights under other projects' names, written from the description of their layouts."""

import numpy as np
import torch


def maker(seed):
    g = torch.Generator().manual_seed(seed)

    def new(*shape):
        return 0.1 * torch.randn(*shape, generator=g)

    def linear(name, rows, columns):
        return {f"{name}.weight": new(rows, columns), f"{name}.bias": new(rows)}

    return new, linear


def table(side, width):
    """DiT's positions, as its NumPy code defines them: half the width for the column, half for the row."""
    axis = np.arange(side, dtype=np.float32)
    columns, rows = np.meshgrid(axis, axis)
    frequencies = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = [np.einsum("m,d->md", places.reshape(-1), frequencies) for places in (columns, rows)]
    return torch.from_numpy(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)).float()[None]


def original(*, width=48, depth=2, patch=2, hidden=192, classes=10, channels=4, out=8, side=4, seed=0):
    """DiT's names; patches are convolution kernels."""
    new, linear = maker(seed)
    state = {"pos_embed": table(side, width)}
    state |= {"x_embedder.proj.weight": new(width, channels, patch, patch), "x_embedder.proj.bias": new(width)}
    state |= linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    state |= {"y_embedder.embedding_table.weight": new(classes + 1, width)}
    for i in range(depth):
        state |= linear(f"blocks.{i}.attn.qkv", 3 * width, width) | linear(f"blocks.{i}.attn.proj", width, width)
        state |= linear(f"blocks.{i}.mlp.fc1", hidden, width) | linear(f"blocks.{i}.mlp.fc2", width, hidden)
        state |= linear(f"blocks.{i}.adaLN_modulation.1", 6 * width, width)
    state |= linear("final_layer.linear", patch**2 * out, width)
    return state | linear("final_layer.adaLN_modulation.1", 2 * width, width)


def sit(**shape):
    """SiT's: the half of the last layer that nothing reads never learns and stays zero."""
    shape = {"channels": 4} | shape
    state = original(**shape | {"out": 2 * shape["channels"]})
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[key].unflatten(0, (-1, 2, shape["channels"]))[:, 1] = 0
    return state


def rotation(side, head):
    """LightningDiT's `feat_rope`: half of a head for the row, half for the column, pairs of channels alike."""
    half = head // 2
    angle = torch.einsum("n,f->nf", torch.arange(side) / side * side, 1 / 10_000 ** (torch.arange(0, half, 2) / half))
    angle = angle.repeat_interleave(2, -1)
    rows, columns = angle[:, None].expand(side, side, half), angle[None].expand(side, side, half)
    angle = torch.cat((rows, columns), -1).reshape(side * side, head)
    return {"feat_rope.freqs_cos": angle.cos(), "feat_rope.freqs_sin": angle.sin()}


def lightning(*, heads=3, rope=True, swiglu=True, rms=True, qk_norm=False, wo_shift=False, doubled=False, **shape):
    """LightningDiT's names, with any of its options."""
    shape = {"width": 48, "depth": 2, "channels": 32, "side": 4, "hidden": 128, "patch": 1} | shape
    width, hidden, depth, channels = shape["width"], shape["hidden"], shape["depth"], shape["channels"]
    state = (sit if doubled else original)(**shape | ({} if doubled else {"out": channels}))
    new, linear = maker(shape.get("seed", 0) + 1)
    for i in range(depth):
        block = f"blocks.{i}"
        if swiglu:
            for key in [key for key in state if key.startswith(f"{block}.mlp.")]:
                del state[key]
            state |= linear(f"{block}.mlp.w12", 2 * hidden, width) | linear(f"{block}.mlp.w3", width, hidden)
        if rms:
            state |= {f"{block}.norm{n}.weight": 1 + new(width) for n in (1, 2)}
        if qk_norm:
            state |= {f"{block}.attn.{name}_norm.weight": 1 + new(width // heads) for name in "qk"}
        if wo_shift:
            state |= linear(f"{block}.adaLN_modulation.1", 4 * width, width)
    if rms:
        state |= {"final_layer.norm_final.weight": 1 + new(width)}
    return state | (rotation(shape["side"], width // heads) if rope else {})


def stock(*, width=48, depth=2, patch=2, classes=10, channels=4, out=8, seed=0):
    """diffusers' names; every block has a copy of the embedders."""
    new, linear = maker(seed)
    state = {"pos_embed.proj.weight": new(width, channels, patch, patch), "pos_embed.proj.bias": new(width)}
    embedders = linear("timestep_embedder.linear_1", width, 256) | linear("timestep_embedder.linear_2", width, width)
    embedders |= {"class_embedder.embedding_table.weight": new(classes + 1, width)}
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        state |= {f"{block}.norm1.emb.{name}": value.clone() for name, value in embedders.items()}
        state |= linear(f"{block}.norm1.linear", 6 * width, width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            state |= linear(f"{block}.attn1.{name}", width, width)
        state |= linear(f"{block}.ff.net.0.proj", 4 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
    return state | linear("proj_out_1", 2 * width, width) | linear("proj_out_2", patch**2 * out, width)


def same(a, b):
    """Equal keys, number formats and bits."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
