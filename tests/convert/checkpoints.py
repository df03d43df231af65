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


def flux(*, width=48, depth=2, single=None, head=16, channels=3, text=20, pooled=10, guidance=True, seed=0):
    """FLUX.1's names; blocks with lanes of their own and parallel ones are numbered apart."""
    new, linear = maker(seed)
    state = linear("img_in", width, 4 * channels) | linear("txt_in", width, text)
    told = {"time_in": 256, "vector_in": pooled} | ({"guidance_in": 256} if guidance else {})
    for name, size in told.items():
        state |= linear(f"{name}.in_layer", width, size) | linear(f"{name}.out_layer", width, width)
    for i in range(depth):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            state |= linear(f"{block}_mod.lin", 6 * width, width) | linear(f"{block}_attn.qkv", 3 * width, width)
            state |= {f"{block}_attn.norm.{name}_norm.scale": 1 + new(head) for name in ("query", "key")}
            state |= linear(f"{block}_attn.proj", width, width)
            state |= linear(f"{block}_mlp.0", 4 * width, width) | linear(f"{block}_mlp.2", width, 4 * width)
    for i in range(depth + 1 if single is None else single):
        block = f"single_blocks.{i}"
        state |= linear(f"{block}.modulation.lin", 3 * width, width) | linear(f"{block}.linear1", 7 * width, width)
        state |= {f"{block}.norm.{name}_norm.scale": 1 + new(head) for name in ("query", "key")}
        state |= linear(f"{block}.linear2", width, 5 * width)
    state |= linear("final_layer.linear", 4 * channels, width)
    return state | linear("final_layer.adaLN_modulation.1", 2 * width, width)


def flux_stock(*, width=48, depth=2, head=16, channels=3, text=20, pooled=10, guidance=False, seed=0):
    """diffusers' names of FLUX.1."""
    new, linear = maker(seed)
    state = linear("x_embedder", width, 4 * channels) | linear("context_embedder", width, text)
    told = {"timestep": 256, "text": pooled} | ({"guidance": 256} if guidance else {})
    for name, size in told.items():
        embedder = f"time_text_embed.{name}_embedder"
        state |= linear(f"{embedder}.linear_1", width, size) | linear(f"{embedder}.linear_2", width, width)
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            state |= linear(f"{block}.attn.{name}", width, width)
        state |= {f"{block}.attn.norm_{name}.weight": 1 + new(head) for name in ("q", "k", "added_q", "added_k")}
        for own in ("", "_context"):
            state |= linear(f"{block}.norm1{own}.linear", 6 * width, width)
            state |= linear(f"{block}.ff{own}.net.0.proj", 4 * width, width)
            state |= linear(f"{block}.ff{own}.net.2", width, 4 * width)
    for i in range(depth + 1):
        block = f"single_transformer_blocks.{i}"
        state |= linear(f"{block}.norm.linear", 3 * width, width) | linear(f"{block}.proj_mlp", 4 * width, width)
        for name in ("to_q", "to_k", "to_v"):
            state |= linear(f"{block}.attn.{name}", width, width)
        state |= {f"{block}.attn.norm_{name}.weight": 1 + new(head) for name in "qk"}
        state |= linear(f"{block}.proj_out", width, 5 * width)
    return state | linear("norm_out.linear", 2 * width, width) | linear("proj_out", 4 * channels, width)


def pixart(*, width=48, depth=2, side=4, text=20, channels=4, out=8, sizes=True, seed=0):
    """PixArt's names; one modulation for all blocks, to which each adds a table."""
    new, linear = maker(seed)
    state = {"pos_embed": table(side, width), "x_embedder.proj.weight": new(width, channels, 2, 2)}
    state |= {"x_embedder.proj.bias": new(width)} | linear("t_block.1", 6 * width, width)
    told = {"t_embedder": width} | (dict.fromkeys(("csize_embedder", "ar_embedder"), width // 3) if sizes else {})
    for name, size in told.items():
        state |= linear(f"{name}.mlp.0", size, 256) | linear(f"{name}.mlp.2", size, size)
    state |= linear("y_embedder.y_proj.fc1", width, text) | linear("y_embedder.y_proj.fc2", width, width)
    for i in range(depth):
        block = f"blocks.{i}"
        state |= {f"{block}.scale_shift_table": new(6, width)} | linear(f"{block}.attn.qkv", 3 * width, width)
        state |= linear(f"{block}.cross_attn.kv_linear", 2 * width, width)
        for name in ("attn.proj", "cross_attn.q_linear", "cross_attn.proj"):
            state |= linear(f"{block}.{name}", width, width)
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return state | {"final_layer.scale_shift_table": new(2, width)} | linear("final_layer.linear", 4 * out, width)


def pixart_stock(*, width=48, depth=2, text=20, channels=4, out=8, sizes=True, seed=0):
    """diffusers' names of PixArt."""
    new, linear = maker(seed)
    state = {"pos_embed.proj.weight": new(width, channels, 2, 2), "pos_embed.proj.bias": new(width)}
    told = {"timestep": width} | (dict.fromkeys(("resolution", "aspect_ratio"), width // 3) if sizes else {})
    for name, size in told.items():
        embedder = f"adaln_single.emb.{name}_embedder"
        state |= linear(f"{embedder}.linear_1", size, 256) | linear(f"{embedder}.linear_2", size, size)
    state |= linear("adaln_single.linear", 6 * width, width)
    state |= linear("caption_projection.linear_1", width, text) | linear("caption_projection.linear_2", width, width)
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        state |= {f"{block}.scale_shift_table": new(6, width)}
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            state |= linear(f"{block}.attn1.{name}", width, width) | linear(f"{block}.attn2.{name}", width, width)
        state |= linear(f"{block}.ff.net.0.proj", 4 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
    return state | {"scale_shift_table": new(2, width)} | linear("proj_out", 4 * out, width)


def sd3(*, width=48, depth=2, dual=(0,), head=16, side=4, text=20, pooled=10, channels=3, seed=0):
    """SD3's names; in the last block the text is read only."""
    new, linear = maker(seed)
    state = {"pos_embed": table(side, width), "x_embedder.proj.weight": new(width, channels, 2, 2)}
    state |= {"x_embedder.proj.bias": new(width)} | linear("context_embedder", width, text)
    for name, size in {"t_embedder": 256, "y_embedder": pooled}.items():
        state |= linear(f"{name}.mlp.0", width, size) | linear(f"{name}.mlp.2", width, width)
    for i in range(depth):
        block, last = f"joint_blocks.{i}", i == depth - 1
        for attn in ("x_block.attn", "context_block.attn", *(["x_block.attn2"] if i in dual else [])):
            state |= linear(f"{block}.{attn}.qkv", 3 * width, width)
            state |= {f"{block}.{attn}.ln_{name}.weight": 1 + new(head) for name in "qk"}
            if not (last and attn == "context_block.attn"):
                state |= linear(f"{block}.{attn}.proj", width, width)
        for stream in ("x_block", *([] if last else ["context_block"])):
            state |= linear(f"{block}.{stream}.mlp.fc1", 4 * width, width)
            state |= linear(f"{block}.{stream}.mlp.fc2", width, 4 * width)
        state |= linear(f"{block}.x_block.adaLN_modulation.1", (9 if i in dual else 6) * width, width)
        state |= linear(f"{block}.context_block.adaLN_modulation.1", (2 if last else 6) * width, width)
    state |= linear("final_layer.linear", 4 * channels, width)
    return state | linear("final_layer.adaLN_modulation.1", 2 * width, width)


def sd3_stock(*, width=48, depth=2, dual=(0,), head=16, side=4, text=20, pooled=10, channels=3, seed=0):
    """diffusers' names of SD3."""
    new, linear = maker(seed)
    state = {"pos_embed.pos_embed": table(side, width), "pos_embed.proj.weight": new(width, channels, 2, 2)}
    state |= {"pos_embed.proj.bias": new(width)} | linear("context_embedder", width, text)
    for name, size in {"timestep": 256, "text": pooled}.items():
        embedder = f"time_text_embed.{name}_embedder"
        state |= linear(f"{embedder}.linear_1", width, size) | linear(f"{embedder}.linear_2", width, width)
    for i in range(depth):
        block, last = f"transformer_blocks.{i}", i == depth - 1
        names = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
        names += ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", *([] if last else ["attn.to_add_out"])]
        names += ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"] if i in dual else []
        for name in names:
            state |= linear(f"{block}.{name}", width, width)
        norms = ["attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"]
        norms += ["attn2.norm_q", "attn2.norm_k"] if i in dual else []
        state |= {f"{block}.{name}.weight": 1 + new(head) for name in norms}
        for own in ("", *([] if last else ["_context"])):
            state |= linear(f"{block}.ff{own}.net.0.proj", 4 * width, width)
            state |= linear(f"{block}.ff{own}.net.2", width, 4 * width)
        state |= linear(f"{block}.norm1.linear", (9 if i in dual else 6) * width, width)
        state |= linear(f"{block}.norm1_context.linear", (2 if last else 6) * width, width)
    return state | linear("norm_out.linear", 2 * width, width) | linear("proj_out", 4 * channels, width)


def same(a, b):
    """Equal keys, number formats and bits."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
