"""FLUX.1 as it was published: how its latents are packed, and its names of the weights that stock diffusers has."""

import torch


def pack(x):
    """Patches of 2 x 2 as FluxPipeline makes them: channel, row, column."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(x, space):
    h, w = (side // 2 for side in space)
    return x.unflatten(1, (h, w)).unflatten(-1, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, *space)


SWAPPED = {"norm_out.linear": "final_layer.adaLN_modulation.1"}  # there the scale is before the shift
JOINED = {
    "transformer_blocks.{i}.attn.to_{qkv}": "double_blocks.{i}.img_attn.qkv",
    "transformer_blocks.{i}.attn.add_{qkv}_proj": "double_blocks.{i}.txt_attn.qkv",
}
RENAMED = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "transformer_blocks.{i}.norm1.linear": "double_blocks.{i}.img_mod.lin",
    "transformer_blocks.{i}.norm1_context.linear": "double_blocks.{i}.txt_mod.lin",
    "transformer_blocks.{i}.attn.to_out.0": "double_blocks.{i}.img_attn.proj",
    "transformer_blocks.{i}.attn.to_add_out": "double_blocks.{i}.txt_attn.proj",
    "transformer_blocks.{i}.ff.net.0.proj": "double_blocks.{i}.img_mlp.0",
    "transformer_blocks.{i}.ff.net.2": "double_blocks.{i}.img_mlp.2",
    "transformer_blocks.{i}.ff_context.net.0.proj": "double_blocks.{i}.txt_mlp.0",
    "transformer_blocks.{i}.ff_context.net.2": "double_blocks.{i}.txt_mlp.2",
    "single_transformer_blocks.{i}.norm.linear": "single_blocks.{i}.modulation.lin",
    "single_transformer_blocks.{i}.proj_out": "single_blocks.{i}.linear2",
}
NORMS = {
    "transformer_blocks.{i}.attn.norm_{qk}": "double_blocks.{i}.img_attn.norm.{name}_norm.scale",
    "transformer_blocks.{i}.attn.norm_added_{qk}": "double_blocks.{i}.txt_attn.norm.{name}_norm.scale",
    "single_transformer_blocks.{i}.attn.norm_{qk}": "single_blocks.{i}.norm.{name}_norm.scale",
}


def published(net):
    """The weights in the layout in which FLUX.1 was published, by the map that conversion scripts agree on."""
    left, found = dict(net.state_dict()), {}

    def move(old, new, change=torch.cat):
        for p in ("weight", "bias"):
            if f"{old[0]}.{p}" in left:
                found[f"{new}.{p}"] = change([left.pop(f"{name}.{p}") for name in old])

    for i in range(max(net.config.num_layers, net.config.num_single_layers)):
        for old, new in JOINED.items():
            move([old.format(i=i, qkv=x) for x in "qkv"], new.format(i=i))
        one = f"single_transformer_blocks.{i}."
        move([f"{one}attn.to_{x}" for x in "qkv"] + [f"{one}proj_mlp"], f"single_blocks.{i}.linear1")
        for old, new in RENAMED.items():
            move([old.format(i=i)], new.format(i=i))
        for old, new in NORMS.items():
            for qk, name in (("q", "query"), ("k", "key")):
                if (key := f"{old.format(i=i, qk=qk)}.weight") in left:
                    found[new.format(i=i, name=name)] = left.pop(key)
    for old, new in SWAPPED.items():
        move([old], new, lambda parts: torch.cat(parts[0].chunk(2)[::-1]))
    assert not left
    return found
