"""Text-to-image pipelines as diffusers saves them, tiny, with random weights that all matter."""

from __future__ import annotations

from pathlib import Path

import torch

from small_encoders import clip, fast, t5

CLIP_MARKS, T5_MARKS = ("<s>", "</s>", "</s>"), ("", "</s>", "<pad>")


def redrawn(net, seed):
    """Nothing stays at zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
    return net.eval()


def vae(diffusers, channels, **more):
    """Two pixels per latent along a side."""
    torch.manual_seed(7)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=0.5,
        **more,
    ).eval()


def tokenizer(transformers, marks, folder):
    """In the class that reads it from a folder."""
    fast(transformers, *marks, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def sd3(diffusers, transformers, scratch: Path, *, with_t5=True):
    """StableDiffusion3Pipeline; without its third encoder where `with_t5` is false."""
    wide = {"hidden_size": 20, "projection_dim": 14, "pad_token_id": 0, "hidden_act": "gelu"}
    net = diffusers.SD3Transformer2DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=64,
        caption_projection_dim=128,
        joint_attention_dim=40,
        pooled_projection_dim=26,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        pos_embed_max_size=12,
    )
    made = diffusers.StableDiffusion3Pipeline(
        transformer=redrawn(net, 0),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(diffusers, 4, shift_factor=0.1),
        text_encoder=redrawn(clip(transformers), 1),
        tokenizer=tokenizer(transformers, CLIP_MARKS, scratch / "1"),
        text_encoder_2=redrawn(clip(transformers, **wide), 2),
        tokenizer_2=tokenizer(transformers, ("<s>", "</s>", "<pad>"), scratch / "2"),
        text_encoder_3=redrawn(t5(transformers), 3) if with_t5 else None,
        tokenizer_3=tokenizer(transformers, T5_MARKS, scratch / "3") if with_t5 else None,
    )
    return quiet(made)


def flux(diffusers, transformers, scratch: Path, *, guidance=True):
    """FluxPipeline, as dev, or as schnell where `guidance` is false."""
    net = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    schedule = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15} if guidance else {}
    made = diffusers.FluxPipeline(
        transformer=redrawn(net, 0),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, **schedule),
        vae=vae(diffusers, 4, shift_factor=0.1),
        text_encoder=redrawn(clip(transformers, projected=False), 1),
        tokenizer=tokenizer(transformers, CLIP_MARKS, scratch / "1"),
        text_encoder_2=redrawn(t5(transformers), 2),
        tokenizer_2=tokenizer(transformers, T5_MARKS, scratch / "2"),
    )
    return quiet(made)


def pixart(
    diffusers, transformers, scratch: Path, *, name="PixArtAlphaPipeline", scheduler="DPMSolverMultistepScheduler"
):
    """PixArtAlphaPipeline or PixArtSigmaPipeline."""
    more = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        sample_size=8,
        in_channels=4,
        out_channels=8,
        caption_channels=40,
        cross_attention_dim=48,
        use_additional_conditions=False,
        interpolation_scale=1,
    )
    made = getattr(diffusers, name)(
        transformer=redrawn(net, 0),
        scheduler=getattr(diffusers, scheduler)(beta_start=1e-4, beta_end=0.02, **more),
        vae=vae(diffusers, 4),
        text_encoder=redrawn(t5(transformers), 1),
        tokenizer=tokenizer(transformers, T5_MARKS, scratch / "1"),
    )
    return quiet(made)


def quiet(pipeline):
    """Without its bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
