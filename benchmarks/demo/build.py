"""Makes every asset of the demo from seeds: ``cd benchmarks && python -m demo.build``.

The benchmark's rows, the tokenizers, the encoders, the model, and the estimator, in that order.
Training scenes are drawn as they are needed, from other seeds than the benchmark's, and never one of its scenes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from demo.scenes import (
    COLOURS,
    CONTROL_SEED,
    KINDS,
    SHAPES,
    SIDE,
    SIZES,
    TEST_SEED,
    Question,
    Scene,
    ask,
    draw,
    scenes_of,
    training_scenes,
)
from PIL import Image
from torch import nn
from tqdm import tqdm

from lmms_eval_emi.data.study import Study, load_study
from lmms_eval_emi.harness.common import SUITE
from lmms_eval_emi.harness.lmms_eval.write_tasks import tasks_folder
from lmms_eval_emi.shifts.at_load import load_splits

ASSETS = Path(str(resources.files("lmms_eval_emi.slices.demo"))) / "assets"
PICTURE, PATCH = 112, 14  # pixels, as the models see them
PATCHES = PICTURE // PATCH
MEAN, STD = 0.5, 0.5
WIDTH = 128
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %} ASSISTANT:"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
ATTRIBUTES = {"colour": sorted(COLOURS), "shape": list(SHAPES), "size": sorted(SIZES)}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the assets, all or some of the stages."""
    parser = argparse.ArgumentParser(description="Make every asset of lmms-eval-emi demo from seeds.")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder to write (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="what to make (default: all)")
    parser.add_argument("--shrink", type=float, default=1.0, help="share of the training steps, to try the code")
    args = parser.parse_args(argv)
    for stage in args.stages:
        begin = time.time()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        STAGES[stage](args.assets.resolve(), args.shrink)
        print(f"{stage}: {(time.time() - begin) / 60:.1f} min", file=sys.stderr)
    return 0


# --- the benchmark --------------------------------------------------------------------------------------------------


def questions_of(seed: int) -> list[tuple[Scene, Question]]:
    """Three questions, one of each kind, about every scene of a set that is not trained on."""
    rng = random.Random(seed + 3)
    return [(one, ask(one, kind, rng)) for one in scenes_of(seed) for kind in KINDS]


def make_benchmark(assets: Path, shrink: float) -> None:
    """The rows of the demo's tasks, which lie beside them: test scenes, and those of the control."""
    folder = tasks_folder() / SUITE / "demo"
    rows_to_parquet(questions_of(TEST_SEED), folder / "benchmark.parquet")
    rows_to_parquet(questions_of(CONTROL_SEED), folder / "control.parquet", prefix="fresh-")


def rows_to_parquet(questions: Sequence[tuple[Scene, Question]], path: Path, prefix: str = "") -> None:
    """Write questions as rows of a dataset, with their drawn scenes."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    features = Features(
        question_id=text, image=ImageFeature(), question=text, reference_answer=text, kind=text, asked=List(text)
    )
    rows = []
    for number, (one, found) in enumerate(questions):
        file = io.BytesIO()
        draw(one).save(file, "PNG", optimize=True)
        rows.append(
            {
                "question_id": f"{prefix}{number // len(KINDS):02d}-{found.kind}",
                "image": {"bytes": file.getvalue(), "path": None},
                "question": found.question,
                "reference_answer": found.reference,
                "kind": found.kind,
                "asked": list(found.asked),
            }
        )
    Dataset.from_list(rows, features=features).to_parquet(path)


# --- training data -----------------------------------------------------------------------------------------------


def corpus(scenes: int = 3000) -> Iterator[str]:
    """Questions and references of training scenes."""
    rng = random.Random(3)
    for one in training_scenes(scenes, seed=3):
        for kind in KINDS:
            found = ask(one, kind, rng)
            yield found.question
            yield found.reference


def pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """(N, 3, H, W) normalised pixels of scenes, drawn as the benchmark is and shrunk as the models' preprocessing does."""
    arrays = np.stack([np.asarray(draw(one).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)) for one in scenes])
    return ((torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255) - MEAN) / STD


def patch_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """(N, patches) class of each attribute of the thing that a patch shows, 0 for none."""
    labels = {name: torch.zeros(len(scenes), PATCHES, PATCHES, dtype=torch.long) for name in ATTRIBUTES}
    middles = (np.arange(PATCHES) + 0.5) * SIDE / PATCHES
    for number, one in enumerate(scenes):
        for thing in one.things:
            near = (middles[:, None] - thing.y) ** 2 + (middles[None, :] - thing.x) ** 2 < (SIZES[thing.size] + 8) ** 2
            for name, values in ATTRIBUTES.items():
                labels[name][number][torch.from_numpy(near)] = 1 + values.index(getattr(thing, name))
    return {name: value.flatten(1) for name, value in labels.items()}


# --- vision towers and the encoders ---------------------------------------------------------------


def vision_tower(seed: int) -> Any:
    """A CLIP vision tower of half a million parameters, untrained."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=PICTURE,
            patch_size=PATCH,
        )
    )


def train_tower(tower: Any, seed: int, steps: int, text: Any = None) -> None:
    """Teach a tower to tell what its patches show, and, with a text encoder, to agree with what is said of the scene.

    Args:
        tower: trained in place.
        seed: of the scenes.
        steps: of the optimiser, 64 scenes each.
        text: (tokenizer, model) of an XLM-R whose embedding layer is trained along, by a contrastive loss. Such a
            pair sees pictures of any quality, as CLIP has, and learns to prefer a true description to one with
            a wrong shape or colour.
    """
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, 1 + len(values)) for name, values in ATTRIBUTES.items()})
    parameters = [*tower.parameters(), *heads.parameters()]
    if text:
        parameters += list(text[1].embeddings.parameters())
    optimiser, schedule = _optimiser(parameters, 1e-3, steps)
    rng = random.Random(seed)
    scenes = training_scenes(64 * steps, seed=seed)
    weights = {name: torch.tensor([0.15] + [1.0] * len(values)) for name, values in ATTRIBUTES.items()}
    tower.train()
    bar = tqdm(range(steps), desc="vision tower" + (" and text embeddings" if text else ""))
    for _ in bar:
        batch = [next(scenes) for _ in range(64)]
        seen = pixels(batch)
        states = tower(pixel_values=of_any_quality(seen) if text else seen).last_hidden_state[:, 1:]
        labels = patch_labels(batch)
        losses = {
            name: nn.functional.cross_entropy(head(states).flatten(0, 1), labels[name].flatten(), weights[name])
            for name, head in heads.items()
        }
        if text:
            true = [ask(one, rng.choice(KINDS), rng) for one in batch]
            sentences = [one.reference for one in true] + [
                _with_wrong(words, one, rng) for words in (SHAPES, sorted(COLOURS)) for one in true
            ]
            # Of the embeddings themselves, without the projections of CLIP, for it is they that the figures use.
            left = nn.functional.normalize(states.mean(dim=1), dim=1)
            right = nn.functional.normalize(_mean_embedding(text, sentences), dim=1)
            logits, target = 20 * left @ right.T, torch.arange(len(batch))
            losses["pairs"] = 0.4 * (
                nn.functional.cross_entropy(logits, target)
                + nn.functional.cross_entropy(logits[:, : len(batch)].T, target)
            )
        _step(optimiser, schedule, sum(losses.values()), parameters)  # type: ignore[arg-type]
        bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()})
    tower.eval()


def of_any_quality(seen: torch.Tensor) -> torch.Tensor:
    """Pictures of which some are blurred, hazy or grainy, by means of their own and not by the shifts' operators."""
    seen = seen.clone()
    share = len(seen) // 4
    for group in range(1, 4):
        part = seen[group * share : (group + 1) * share]
        if group in (1, 3):
            sigma = float(torch.rand(()) * 3 + 0.1)
            taps = torch.arange(-9, 10, dtype=torch.float32)
            kernel = torch.exp(-(taps**2) / (2 * sigma**2))
            kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
            part = nn.functional.conv2d(nn.functional.pad(part, (9, 9, 9, 9), "reflect"), kernel, groups=3)
            part = nn.functional.conv2d(part, kernel.transpose(2, 3), groups=3)
        if group in (2, 3):
            kept = 0.15 + 0.85 * torch.rand(len(part), 1, 1, 1)
            haze = nn.functional.interpolate(torch.rand(len(part), 1, 7, 7) * 2 - 1, part.shape[-2:], mode="bilinear")
            part = kept * part + (1 - kept) * haze + 0.1 * torch.rand(()) * torch.randn_like(part)
        seen[group * share : (group + 1) * share] = part.clamp(-1, 1)
    return seen


def _with_wrong(words: Sequence[str], question: Question, rng: random.Random) -> str:
    """A reference in which one object asked about has another colour or shape, which none of the scene's need have."""
    name = rng.choice(question.asked)
    word = next(word for word in name.split() if word in words)
    other = rng.choice([one for one in words if one not in " ".join(question.asked)])
    return re.sub(rf"\b{word}\b", other, question.reference)


def _mean_embedding(text: Any, sentences: list[str]) -> torch.Tensor:
    tokenizer, model = text
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    states, mask = model.embeddings(input_ids=tokens["input_ids"])[:, 1:], tokens["attention_mask"][:, 1:, None]
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def _optimiser(parameters: list, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))) + 0.02),
    )
    return optimiser, schedule


def _step(optimiser: torch.optim.Optimizer, schedule: Any, loss: torch.Tensor, parameters: list) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    schedule.step()


def image_processor() -> Any:
    """The preprocessing that the towers were trained with."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": PICTURE},
        crop_size={"height": PICTURE, "width": PICTURE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


def make_encoders(assets: Path, shrink: float, seed: int = 0) -> None:
    """The CLIP vision model and the XLM-R embedding layer of the figures, which the demo's model knows nothing of.

    Args:
        assets: folder to write.
        shrink: share of the training steps.
        seed: other seeds draw other weights and other training scenes.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    pieces = Tokenizer(models.Unigram())
    pieces.normalizer, pieces.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    printable = [chr(code) for code in range(33, 127)]
    pieces.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=printable, show_progress=False
        ),
    )
    learned = [(piece, score) for piece, score in json.loads(pieces.to_str())["model"]["vocab"] if piece != "<unk>"]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *learned, ("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=vocabulary)
    torch.manual_seed(11 + 100 * seed)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=16,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    text = XLMRobertaModel(config, add_pooling_layer=False)
    tower = vision_tower(seed=12 + 100 * seed)
    train_tower(tower, seed=13 + 100 * seed, steps=max(2, int(1600 * shrink)), text=(tokenizer, text))
    tower.half().save_pretrained(
        assets / "vision_encoder"
    )  # half the bytes, rounded before anything is trained on them
    image_processor().save_pretrained(assets / "vision_encoder")
    text.half().save_pretrained(assets / "text_encoder")
    tokenizer.save_pretrained(assets / "text_encoder")


# --- the model ---------------------------------------------------------------------------------------------------


def model_tokenizer() -> Any:
    """A byte-level BPE in which the words of the scenes are tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = Tokenizer(models.BPE())
    text.pre_tokenizer, text.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text.train_from_iterator(
        [f"USER: \n{sentence} ASSISTANT: {sentence}" for sentence in corpus()],
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>", "<pad>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(assets: Path, shrink: float) -> None:
    """The LLaVA: a vision tower that learns to see first, then a language model that learns to speak of what it saw."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = model_tokenizer()
    tower = vision_tower(seed=21)
    train_tower(tower, seed=22, steps=max(2, int(2000 * shrink)))
    torch.manual_seed(23)
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower.config,
            text_config=language,
            image_token_index=image_token,
            vision_feature_layer=-1,
            image_seq_length=PATCHES**2,
        )
    )
    model.model.vision_tower.load_state_dict(tower.state_dict())
    train_language_model(model, tokenizer, steps=max(2, int(2500 * shrink)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(assets / "model")
    LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(assets / "model")


def train_language_model(model: Any, tokenizer: Any, steps: int, scenes_a_step: int = 24, questions: int = 6) -> None:
    """Teach the projector and the language model to answer; the tower stays as it is.

    Several questions of a scene share its image in one sequence, each seeing the image and itself alone, so that
    every one is learned as if it were asked by itself.
    """
    tower, head = model.model.vision_tower, model.lm_head
    trained = [
        *model.model.multi_modal_projector.parameters(),
        *model.model.language_model.parameters(),
        *head.parameters(),
    ]
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    optimiser, schedule = _optimiser(trained, 2e-3, steps)
    rng = random.Random(24)
    scenes = training_scenes(steps * scenes_a_step, seed=25)
    prefix = tokenizer("USER: ", add_special_tokens=False)["input_ids"]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    model.train()
    tower.eval()
    bar = tqdm(range(steps), desc="language model")
    for _ in bar:
        batch = [next(scenes) for _ in range(scenes_a_step)]
        with torch.no_grad():
            seen = tower(pixel_values=pixels(batch)).last_hidden_state[:, 1:]
        projected = model.model.multi_modal_projector(seen)
        embed = model.get_input_embeddings()
        shared = len(prefix) + projected.shape[1] + len(newline)
        rows = []
        for one in batch:
            kinds = ["description"] + [rng.choice(("conversation", "reasoning")) for _ in range(questions - 1)]
            rows.append([_turn(tokenizer, ask(one, kind, rng)) for kind in kinds])
        longest = max(sum(len(tokens) for tokens, _ in row) for row in rows)
        tokens = torch.full((len(batch), longest), tokenizer.pad_token_id)
        labels = torch.full((len(batch), longest), -100)
        places = torch.zeros((len(batch), shared + longest), dtype=torch.long)
        places[:, :shared] = torch.arange(shared)
        owner = torch.full((len(batch), shared + longest), -1)
        owner[:, :shared] = 0
        for number, row in enumerate(rows):
            start = 0
            for turn, (ids, answer_start) in enumerate(row, start=1):
                stop = start + len(ids)
                tokens[number, start:stop] = torch.tensor(ids)
                labels[number, start + answer_start : stop] = torch.tensor(ids[answer_start:])
                places[number, shared + start : shared + stop] = shared + torch.arange(len(ids))
                owner[number, shared + start : shared + stop] = turn
                start = stop
        inputs = torch.cat(
            [
                embed(torch.tensor(prefix)).expand(len(batch), -1, -1),
                projected,
                embed(torch.tensor(newline)).expand(len(batch), -1, -1),
                embed(tokens),
            ],
            dim=1,
        )
        order = torch.arange(shared + longest)
        allowed = (order[None, :, None] >= order[None, None, :]) & (
            (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        )
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        states = model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=places, use_cache=False
        ).last_hidden_state
        # The token at a place is predicted from the state before it, which for a turn's first is never wanted.
        predicted, wanted = states[:, shared - 1 : -1], labels
        chosen = wanted != -100
        loss = nn.functional.cross_entropy(head(predicted[chosen]), wanted[chosen])
        _step(optimiser, schedule, loss, trained)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def _turn(tokenizer: Any, question: Question) -> tuple[list[int], int]:
    """Tokens of a question and its answer, and where the answer begins."""
    asked = tokenizer(f"{question.question} ASSISTANT:", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f" {question.reference}</s>", add_special_tokens=False)["input_ids"]
    return asked + answer, len(asked)


# --- the estimator ------------------------------------------------------------------------------------------------


def make_estimator(assets: Path, shrink: float) -> None:
    """The estimator, trained by train-estimator on training scenes under the demo's own shifts."""
    from lmms_eval_emi.util.files import file_hexdigest

    checkpoints = Path(str(resources.files("lmms_eval_emi.estimator_ckpt")))
    with tempfile.TemporaryDirectory() as name:
        study = answer_training_scenes(Path(name), assets, shrink)
        train_on(study, assets, Path(name) / "demo.safetensors", iterations=max(10, int(3000 * shrink)))
        shutil.copy(Path(name) / "demo.safetensors", checkpoints / "demo.safetensors")
    registry = checkpoints / "registry.yaml"
    sha256 = file_hexdigest(checkpoints / "demo.safetensors")
    entry = re.sub(r"(demo:\n(?:  .*\n)*?  sha256: )\w+", rf"\g<1>{sha256}", registry.read_text(encoding="utf-8"))
    registry.write_text(entry, encoding="utf-8")


def answer_training_scenes(folder: Path, assets: Path, shrink: float) -> Path:
    """The model's responses to training scenes under the demo's shifts; returns their study file."""
    demo = Path(load_study("demo").source)
    rng = random.Random(31)
    scenes = list(training_scenes(max(8, int(250 * shrink)), seed=32))
    rows_to_parquet([(one, ask(one, kind, rng)) for one in scenes for kind in KINDS], folder / "benchmark.parquet")
    shutil.copy(demo.with_name("synonyms.yaml"), folder / "synonyms.yaml")
    described = yaml.safe_load(demo.read_text(encoding="utf-8"))
    described["splits"] = {
        name: one for name, one in described["splits"].items() if one.get("modality") != "control"
    }  # whose rows are not to be trained on
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    write_answers(load_study(path), load_model(assets), folder)
    return path


def load_model(assets: Path) -> Any:
    """The demo's model, for inference on the CPU."""
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(assets / "model", dtype=torch.float32).eval()


def write_answers(study: Study, model: Any, folder: Path) -> None:
    """The responses of a model to every split of a study, as response files."""
    for split, rows in load_splits(study).items():
        replies = answer(rows, model, split)
        lines = [
            json.dumps({"question_id": row_id, "text": reply, "model_id": "demo"})
            for row_id, reply in zip(rows["question_id"], replies, strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def train_on(study: Path, encoders: Path, output: Path, iterations: int) -> None:
    """Train an estimator on the responses beside a study file, with the encoders in a folder."""
    from lmms_eval_emi.cli import main as command

    with contextlib.chdir(encoders):  # paths below it, so that the estimator's card tells no machine's folders
        failed = command(
            [
                *("estimators", "train", "--study", str(study), "--responses", str(study.parent), "--model", "demo"),
                *("--vision-encoder", "vision_encoder", "--text-encoder", "text_encoder", "--device", "cpu"),
                *("--folds", "1", "--output", str(output), "--iterations", str(iterations)),
            ]
        )
    if failed:
        raise SystemExit(failed)


@torch.inference_mode()
def answer(rows: Any, model: Any, label: str, batch_size: int = 64) -> list[str]:
    """The model's greedy responses to rows, as the harness would ask for them."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(ASSETS / "model")
    processor.tokenizer.padding_side = "left"
    replies: list[str] = []
    for start in tqdm(range(0, len(rows), batch_size), desc=f"responses, {label}"):
        batch = rows[start : start + batch_size]
        prompts = [
            processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": f"<image>\n{question}"}], tokenize=False, add_generation_prompt=True
            )
            for question in batch["question"]
        ]
        inputs = processor(images=batch["image"], text=prompts, padding=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=128, do_sample=False)
        replies += processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


STAGES = {"benchmark": make_benchmark, "encoders": make_encoders, "model": make_model, "estimator": make_estimator}

if __name__ == "__main__":
    sys.exit(main())
