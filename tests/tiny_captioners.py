"""Tiny captioning checkpoints of transformers: real classes, real tokenizer files, random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny_models import bert_tokenizer

__all__ = [
    "CAPTIONERS",
    "save_blip",
    "save_florence",
    "save_git",
    "save_llava",
    "save_qwen",
    "save_smolvlm",
    "save_vit_gpt2",
]

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE = {"height": 32, "width": 32}
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _letters(*special: str, **options: Any) -> Any:
    """GPT-2's own byte-level BPE with no merges."""
    letters = sorted(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", *letters, *special])}
    return transformers.GPT2Tokenizer(
        vocab=vocab, merges=[], unk_token="<|endoftext|>", extra_special_tokens=list(special), **options
    )


def save_vit_gpt2(folder: Path) -> Path:
    tokenizer = _letters(model_max_length=64)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    encoder = transformers.ViTConfig(**{**_TOWER, "hidden_size": 48}, image_size=32, patch_size=8)
    decoder = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True,
        is_decoder=True, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = end
    net = _wild(transformers.VisionEncoderDecoderModel, config)
    net.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=end, eos_token_id=end, pad_token_id=end, bos_token_id=end
    )
    return _save(folder, net, transformers.ViTImageProcessor(size=_PICTURE), tokenizer)


def save_blip(folder: Path) -> Path:
    tokenizer = bert_tokenizer(model_max_length=64)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    config = transformers.BlipConfig(
        text_config={
            **_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "encoder_hidden_size": 32,
            "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id,
            "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    net = _wild(transformers.BlipForConditionalGeneration, config)
    return _save(folder, net, transformers.BlipProcessor(transformers.BlipImageProcessor(size=_PICTURE), tokenizer))


def save_git(folder: Path) -> Path:
    tokenizer = bert_tokenizer(model_max_length=64)
    config = transformers.GitConfig(
        **_TOWER, vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id,
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_PICTURE)
    return _save(folder, _wild(transformers.GitForCausalLM, config), transformers.GitProcessor(images, tokenizer))


def save_llava(folder: Path) -> Path:
    tokenizer = _letters("<image>", model_max_length=2048, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_TOWER, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(
            **_TOWER, vocab_size=len(tokenizer), max_position_embeddings=2048,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_seq_length=16,
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_PICTURE)
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return _save(folder, _wild(transformers.LlavaForConditionalGeneration, config), processor)


def save_smolvlm(folder: Path) -> Path:
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
    special += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = _letters(*special, model_max_length=2048, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.SmolVLMConfig(
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        text_config={
            **_TOWER, "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 2048,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=image, scale_factor=2,
    )  # fmt: skip
    # Pictures are cut into four, with the whole one beside them: as many tokens as there are parts.
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**sizes), tokenizer, transformers.SmolVLMVideoProcessor(**sizes),
        image_seq_len=4, chat_template=_CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return _save(folder, _wild(transformers.SmolVLMForConditionalGeneration, config), processor)


def save_qwen(folder: Path, name: str = "Qwen2VL") -> Path:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _letters(*special, model_max_length=2048, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    start, end, image, video = tokenizer.convert_tokens_to_ids(special)
    tower: dict[str, Any] = {
        "depth": 2, "num_heads": 4, "hidden_size": 32, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip
    tower |= {
        "Qwen2VL": {"embed_dim": 32, "mlp_ratio": 2},
        "Qwen2_5_VL": {"out_hidden_size": 32, "intermediate_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
        "Qwen3VL": {
            "out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }[name]  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config=tower,
        text_config={
            **_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 2048, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_start_token_id=start, vision_end_token_id=end, image_token_id=image, video_token_id=video,
    )  # fmt: skip
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    images = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, size=size)
    videos = transformers.Qwen2VLVideoProcessor(patch_size=4, merge_size=2, size=size)
    processor = getattr(transformers, f"{name}Processor")(
        images, tokenizer, videos, chat_template=_CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    )
    network = getattr(transformers, f"{name}ForConditionalGeneration")
    return _save(folder, _wild(network, config), processor)


def save_florence(folder: Path) -> Path:
    letters = sorted(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>", "<image>"])}
    tokenizer = transformers.BartTokenizer(
        vocab=vocab, merges=[], extra_special_tokens={"image_token": "<image>"}, model_max_length=128
    )
    config = transformers.Florence2Config(
        vision_config={
            "embed_dim": [8, 8, 16, 32], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
            "depths": [1, 1, 1, 1], "projection_dim": 32, "window_size": 2,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "vocab_size": len(tokenizer), "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1,
            "eos_token_id": 2, "decoder_start_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    net = _wild(transformers.Florence2ForConditionalGeneration, config)
    net.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=2, forced_bos_token_id=0, forced_eos_token_id=2, eos_token_id=2, pad_token_id=1,
        bos_token_id=0, no_repeat_ngram_size=3, num_beams=3,
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    return _save(folder, net, transformers.Florence2Processor(images, tokenizer))


def _wild(network: Any, config: Any) -> Any:
    """Weights so large that pictures come out unlike each other, and beams do not tie."""
    torch.manual_seed(7)
    net = network(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.35)
    return net


def _save(folder: Path, net: Any, *parts: Any) -> Path:
    net.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


CAPTIONERS: dict[str, Callable[[Path], Path]] = {
    "vision-encoder-decoder": save_vit_gpt2,
    "blip": save_blip,
    "git": save_git,
    "llava": save_llava,
    "smolvlm": save_smolvlm,
    "qwen2": save_qwen,
    "qwen2.5": partial(save_qwen, name="Qwen2_5_VL"),
    "qwen3": partial(save_qwen, name="Qwen3VL"),
    "florence": save_florence,
}
