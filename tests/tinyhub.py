"""A folder that stands in for the hub: the real names and splits, random models, a few drawn rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lmms_eval_emi.data.study import BUILT_IN, Study, load_study
from lmms_eval_emi.estimators import CLUB

DIMENSION = 32
ROWS = 5
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!:-"
WORDS = "a red blue small large square circle star left right of above below the is and two three what where describe".split()


def build(root: Path) -> Path:
    """Fill ``root`` with datasets, encoders, an estimator and a LLaVA, and return it."""
    torch.manual_seed(0)
    for name in BUILT_IN:
        write_dataset(root, load_study(name))
    write_vision_encoder(root / "openai" / "clip-vit-base-patch32")
    write_text_encoder(root / "xlm-roberta-base")
    CLUB(DIMENSION, DIMENSION, 16).save(root / "tiny.safetensors")
    write_llava(root / "tiny-llava")
    write_mme(root)
    return root


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def picture(rng: np.random.Generator, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_dataset(root: Path, study: Study, rows: int = ROWS) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    dataset = study.split(study.id_split).dataset
    columns = dataset.columns
    features = Features(
        {
            columns.id: Value("int64"),
            columns.image: ImageFeature(),
            columns.question: Value("string"),
            columns.reference: Value("string"),
        }
    )
    folder = root / dataset.path
    (folder / "data").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    references = [sentence(np.random.default_rng(row), 9) for row in range(rows)]
    for number, split in enumerate(study.splits):
        rng = np.random.default_rng(number)
        images = [picture(rng) for _ in range(2)]
        records = [
            {
                columns.id: row,
                columns.image: images[row % 2],
                columns.question: sentence(rng, 6) + "?",
                columns.reference: references[row],
            }
            for row in range(rows)
        ]
        Dataset.from_list(records, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        card += f"  - split: {split}\n    path: data/{split}-*\n"
    (folder / "README.md").write_text(card + "---\n")


def write_vision_encoder(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig()
    config.vision_config.hidden_size, config.vision_config.intermediate_size = DIMENSION, 64
    config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 2, 4
    config.vision_config.image_size, config.vision_config.patch_size = 32, 8
    config.text_config.hidden_size, config.text_config.intermediate_size = 16, 16
    config.text_config.num_hidden_layers, config.text_config.num_attention_heads = 1, 2
    config.text_config.vocab_size, config.text_config.bos_token_id, config.text_config.eos_token_id = 20, 18, 19
    config.projection_dim = 16
    CLIPModel(config).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))


def write_text_encoder(folder: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer

    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    vocabulary += [(letter, -3.0) for letter in LETTERS] + [(f"▁{word}", -2.0) for word in WORDS] + [("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)  # its keys begin with "roberta.", as the hub's do


def write_llava(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    text = Tokenizer(models.BPE())
    text.pre_tokenizer, text.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    text.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<pad>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}{% endfor %}"
    tokenizer.chat_template = template
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


def write_mme(root: Path) -> None:
    """Eight rows in the layout of MME, a task of the harness itself."""
    from datasets import Dataset

    folder = root / "lmms-lab-encoder" / "MME" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [
        {
            "question_id": f"code_reasoning/{row // 2}.png",
            "image": picture(rng),
            "question": "Is it red?",
            "answer": ("Yes", "No")[row % 2],
            "category": "code_reasoning",
        }
        for row in range(8)
    ]
    Dataset.from_list(rows).to_parquet(folder / "test-00000-of-00001.parquet")
