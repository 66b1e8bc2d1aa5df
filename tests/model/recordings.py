"""Made-up recordings, and tiny encoders with random weights, that the tests of the extraction share."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "you", "there", "no", "ann", "bob", ":"]
SIZE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def tone(path: Path, hertz: float, seconds: float = 2.0) -> Path:
    samples = (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(8000 * seconds)) / 8000) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path


def film(path: Path, seconds: float = 2.0, sound: bool = True) -> Path:
    """Ten pictures a second that grow lighter, and a tone."""
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(int(10 * seconds)):
            level = np.full((48, 64, 3), min(10 + 10 * number, 250), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(16000 * seconds)) / 16000)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def text_encoder(folder: Path) -> Path:
    transformers: Any = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **SIZE)).save_pretrained(folder)
    return folder


def speech_encoder(folder: Path, kind: str) -> Path:
    """wav2vec2, hubert, wavlm, whisper, or ctc: a wav2vec2 that recognises letters."""
    transformers: Any = pytest.importorskip("transformers")
    if kind == "whisper":
        size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = transformers.WhisperConfig(
            d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=80, vocab_size=60, pad_token_id=0, **size
        )
        transformers.WhisperModel(config).save_pretrained(folder)
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
        return folder
    name = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "ctc": "Wav2Vec2"}[kind]
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (160, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = getattr(transformers, f"{name}Config")(vocab_size=8, **SIZE, **convolutions, **positions)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    if kind != "ctc":
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        extractor.save_pretrained(folder)
        return folder
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder


def picture_encoder(folder: Path, kind: str) -> Path:
    """vit, clip, resnet, or videomae, which sees four pictures together."""
    transformers: Any = pytest.importorskip("transformers")
    model: Any
    if kind == "videomae":
        config = transformers.VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, **SIZE)
        model = transformers.VideoMAEModel(config)
        processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    elif kind == "clip":
        vision = {"image_size": 16, "patch_size": 8, "projection_dim": 8, **SIZE}
        text = {"vocab_size": 20, "projection_dim": 8, **SIZE}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        )
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    elif kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
        model = transformers.ResNetModel(config)
        processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    else:
        model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **SIZE))
        processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
