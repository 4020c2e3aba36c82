"""Tiny image and video models with random weights, in the folders that SGLang loads. Runs where
requirements.txt is installed; fetches nothing.

    python tiny_models.py DIRECTORY

Makes `tiny/FLUX.1-dev` (text to image), `tiny/FLUX.1-dev-other` (the same with other weights),
`tiny/Wan2.1-T2V-1.3B-Diffusers` (text to video) and `tiny/lora` (an adapter of the first). The
names matter: SGLang tells the kind of a model by that of its folder.
"""

from __future__ import annotations

import os
import shutil
import string
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch_gaps

torch_gaps.fill()

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

WIDTH = 32  # of every text encoder
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """One token per letter, alone or at the end of a word: there are no merges."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_encoder(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextModel:
    end = len(tokenizer) - 1
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=WIDTH,
            max_position_embeddings=77,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
            **LAYERS,
        )
    )


def t5_tokenizer() -> transformers.T5Tokenizer:
    """One piece per printable character, all about as likely."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces = special + [(chr(code), -3.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def t5_settings() -> dict[str, object]:
    return {
        "vocab_size": 4 + len(string.printable),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }


def flux() -> diffusers.FluxPipeline:
    blocks = 4
    tokenizer = clip_tokenizer()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        tokenizer=tokenizer,
        text_encoder=clip_encoder(tokenizer),
        tokenizer_2=t5_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(transformers.T5Config(**t5_settings())),
        vae=diffusers.AutoencoderKL(
            sample_size=32,
            latent_channels=4,
            layers_per_block=1,
            block_out_channels=(8,) * blocks,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            scaling_factor=1.5,
            shift_factor=0.06,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,  # the VAE's channels, packed two by two
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 4, 8),
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
        ),
    )


def wan() -> diffusers.WanPipeline:
    channels = 16
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=transformers.UMT5EncoderModel(transformers.UMT5Config(**t5_settings())),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=3.0,
        ),
        vae=diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],  # spelt so in diffusers
        ),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            in_channels=channels,
            out_channels=channels,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=12,
            ffn_dim=WIDTH,
            text_dim=WIDTH,
            freq_dim=256,
            rope_max_seq_len=64,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        ),
    )


def adapter(rank: int = 4) -> dict[str, torch.Tensor]:
    """Strong enough that a picture shows it."""
    tensors = {}
    for layer in ("to_q", "to_k", "to_v"):
        stem = f"transformer.transformer_blocks.0.attn.{layer}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, WIDTH) / 2
        tensors[f"{stem}.lora_B.weight"] = torch.randn(WIDTH, rank) / 2
    return tensors


def main(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(0)
    images = flux()
    images.save_pretrained(directory / "FLUX.1-dev")
    wan().save_pretrained(directory / "Wan2.1-T2V-1.3B-Diffusers")
    with torch.no_grad():
        for parameter in images.transformer.parameters():
            parameter += torch.randn_like(parameter) / 50
    images.save_pretrained(directory / "FLUX.1-dev-other")
    (directory / "lora").mkdir()
    save_file(adapter(), directory / "lora" / "pytorch_lora_weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "tiny")
