"""Tiny checkpoints of transformers and torchvision: real classes, real tokenizer files, random weights.

Each function writes one with ``save_pretrained``, as anybody would, and returns its folder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

__all__ = [
    "DECODERS",
    "DUAL_ENCODERS",
    "LEAST_COSINE",
    "TEXTS",
    "bert_tokenizer",
    "clip_tokenizer",
    "gemma_tokenizer",
    "photo",
    "save_clip",
    "save_decoder",
    "save_gemma_siglip",
    "save_sentence",
    "spiece",
    "write_modules",
]

TEXTS = [
    "a black dog runs",
    "two men play a guitar outside in front of a small crowd",
    "snow",
    "一只狗 ñandú — ÇA VA? 42",
    "a child eats a red apple " * 30,  # more tokens than any of them has places for
]
# What a GPU's vectors have at least to the CPU's. bfloat16 keeps eight bits of a number.
LEAST_COSINE = {"float32": 0.999, "float16": 0.999, "auto": 0.999, "bfloat16": 0.98}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

_SIGLIP_TEXT = {"max_position_embeddings": 16, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 1}


def photo(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    """A picture with smooth shapes: noise alone would look alike to every model."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def clip_tokenizer(**options: Any) -> Any:
    """CLIP's own byte-level BPE with no merges: every text is read, letter by letter."""
    letters = list(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*sorted(letters), *(f"{letter}</w>" for letter in sorted(letters))]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], **options)


def bert_tokenizer(**options: Any) -> Any:
    letters = [chr(c) for c in range(33, 127)] + ["一", "只", "狗", "—"]
    words = ["a", "dog", "black", "##s", "men", *letters, *(f"##{letter}" for letter in letters)]
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    return transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, **options)


def spiece(folder: Path) -> Path:
    """A SentencePiece model, as SigLIP's slow tokenizer reads it."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *(chr(c) for c in range(33, 127))]),
        model_writer=out,
        vocab_size=150,
        model_type="unigram",
        hard_vocab_limit=False,
        byte_fallback=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(out.getvalue())
    return folder / "spiece.model"


def save_clip(folder: Path, **saving: Any) -> Path:
    tokenizer = clip_tokenizer(model_max_length=24)
    config = transformers.CLIPConfig(
        text_config={
            **_TOWER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        },
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    return _save(folder, transformers.CLIPModel, config, processor, **saving)


def _save_siglip(folder: Path) -> Path:
    tokenizer = transformers.SiglipTokenizer(vocab_file=str(spiece(folder)), model_max_length=16)
    config = transformers.SiglipConfig(
        text_config={**_TOWER, **_SIGLIP_TEXT, "vocab_size": 150},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
    )
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return _save(folder, transformers.SiglipModel, config, transformers.SiglipProcessor(images, tokenizer))


def _save_siglip2(folder: Path) -> Path:
    """NaFlex: patches in whatever shape the picture has."""
    letters = sorted(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=16
    )
    config = transformers.Siglip2Config(
        text_config={**_TOWER, **_SIGLIP_TEXT, "vocab_size": len(pieces)},
        vision_config={**_TOWER, "num_patches": 16, "patch_size": 8},
    )
    images = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return _save(folder, transformers.Siglip2Model, config, transformers.Siglip2Processor(images, tokenizer))


def _save_chinese_clip(folder: Path) -> Path:
    tokenizer = bert_tokenizer(model_max_length=32)
    config = transformers.ChineseCLIPConfig(
        text_config={**_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    images = transformers.ChineseCLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    )
    return _save(folder, transformers.ChineseCLIPModel, config, transformers.ChineseCLIPProcessor(images, tokenizer))


def _save_align(folder: Path) -> Path:
    tokenizer = bert_tokenizer(model_max_length=32)
    config = transformers.AlignConfig(
        text_config={**_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        vision_config={
            "image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 0.1, "hidden_dim": 32,
            "in_channels": [32, 8], "out_channels": [8, 32], "kernel_sizes": [3, 3], "strides": [1, 2],
            "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": [],
        },
        projection_dim=32,
    )  # fmt: skip
    images = transformers.EfficientNetImageProcessor(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    return _save(folder, transformers.AlignModel, config, transformers.AlignProcessor(images, tokenizer))


def save_sentence(folder: Path, pooling: str = "mean", *, normalize: bool = True, dense: int = 0) -> Path:
    """What sentence-transformers writes around a BERT."""
    tokenizer = bert_tokenizer(model_max_length=32)
    config = transformers.BertConfig(**_TOWER, vocab_size=len(tokenizer), max_position_embeddings=32)
    _save(folder, transformers.BertModel, config, tokenizer)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    if dense:
        from safetensors.torch import save_file

        modules.append(("Dense", "2_Dense"))
        (folder / "2_Dense").mkdir()
        activation = "torch.nn.modules.activation.Tanh"
        facts = {"in_features": 32, "out_features": dense, "bias": True, "activation_function": activation}
        (folder / "2_Dense/config.json").write_text(json.dumps(facts))
        weights = {"linear.weight": torch.randn(dense, 32), "linear.bias": torch.randn(dense)}
        save_file(weights, folder / "2_Dense/model.safetensors")
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    return folder


def save_gemma_siglip(folder: Path) -> Path:
    """SigLIP 2 of fixed resolution as it is published: the architecture SigLIP, with Gemma's tokenizer."""
    tokenizer = gemma_tokenizer(model_max_length=16, padding_side="right", model_input_names=["input_ids"])
    config = transformers.SiglipConfig(
        text_config={**_TOWER, **_SIGLIP_TEXT, "vocab_size": len(tokenizer)},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
    )
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return _save(folder, transformers.SiglipModel, config, transformers.SiglipProcessor(images, tokenizer))


def gemma_tokenizer(**options: Any) -> Any:
    letters = sorted(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    return transformers.GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], **options)


# Language models that were trained on to be sentence encoders: (configuration, network, what its configuration adds).
DECODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model, {"head_dim": 8}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralModel, {}),
    "gemma3_text": (
        transformers.Gemma3TextConfig,
        transformers.Gemma3TextModel,
        {"head_dim": 8, "use_bidirectional_attention": True, "sliding_window": 16},
    ),
}


def save_decoder(folder: Path, model_type: str, pooling: str | list[str] = "lasttoken", side: str = "left") -> Path:
    """As sentence-transformers writes it since 5.4."""
    tokenizer = gemma_tokenizer(model_max_length=48, padding_side=side)
    configuration, network, more = DECODERS[model_type]
    config = configuration(**_TOWER, **more, num_key_value_heads=2, vocab_size=len(tokenizer), pad_token_id=0)
    _save(folder, network, config, tokenizer)
    write_modules(folder, pooling)
    return folder


def write_modules(folder: Path, pooling: str | list[str], **facts: Any) -> None:
    """modules.json and what belongs to it, as sentence-transformers writes them since 5.4."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    said = {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": True, **facts}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    types = {"": "base.modules.transformer.Transformer", "1_Pooling": "sentence_transformer.modules.pooling.Pooling"}
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{name}"}
        for i, (path, name) in enumerate(types.items())
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    task = {"transformer_task": "feature-extraction", "modality_config": {"text": text}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(task | {"module_output_name": "token_embeddings"}))


def _save(folder: Path, network: Any, config: Any, processor: Any, **saving: Any) -> Path:
    torch.manual_seed(7)
    model = network(config)
    # Their own initialisation is so small that all pictures would come out alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    if (dtype := saving.pop("dtype", None)) is not None:
        model.to(dtype)
    model.save_pretrained(folder, **saving)
    processor.save_pretrained(folder)
    return folder


DUAL_ENCODERS: dict[str, Callable[[Path], Path]] = {
    "clip": save_clip,
    "siglip": _save_siglip,
    "siglip2": _save_siglip2,
    "chinese-clip": _save_chinese_clip,
    "align": _save_align,
}
