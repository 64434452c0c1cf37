"""Encoders: their definition, independence of batch and padding, checkpoints, images of any kind."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tinyhub as builder
import torch
from PIL import Image

from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.encoders import load_encoders, load_text_encoder, load_vision_encoder
from lmms_eval_emi.encoders.base import encode_batches, resolve_device
from lmms_eval_emi.encoders.vision import Preprocessing
from lmms_eval_emi.errors import SampleError, UnavailableError
from lmms_eval_emi.scoring.embed import embed_splits

VISION, TEXT = "openai/clip-vit-base-patch32", "xlm-roberta-base"


@pytest.fixture
def encoders(in_tinyhub):
    return load_encoders(VISION, TEXT, "cpu")


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [builder.picture(rng, width, height) for width, height in ((40, 30), (30, 40), (32, 32), (100, 33), (7, 90))]


def test_vision_follows_its_definition(encoders, in_tinyhub, pictures):
    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(VISION).eval()
    preprocessing = Preprocessing(VISION)
    pixels = torch.from_numpy(np.stack([preprocessing(picture) for picture in pictures]))
    with torch.no_grad():
        last_layer = whole.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
    expected = torch.nn.functional.normalize(last_layer[:, 1:].mean(dim=1), dim=1)
    torch.testing.assert_close(encoders.vision.encode(pictures), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_follows_its_definition_for_both_activations(act, in_tinyhub, tmp_path):
    import shutil

    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(VISION).eval()
    whole.config.vision_config.hidden_act = act
    whole.save_pretrained(tmp_path / "clip")
    shutil.copy(in_tinyhub / VISION / "preprocessor_config.json", tmp_path / "clip")
    whole = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    rng = np.random.default_rng(1)
    pictures = [builder.picture(rng, 30 + number, 40) for number in range(11)]
    encoder = load_vision_encoder(str(tmp_path / "clip"), "cpu")
    pixels = torch.from_numpy(np.stack([encoder.preprocessing(picture) for picture in pictures]))
    with torch.no_grad():
        states = whole.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
    expected = torch.nn.functional.normalize(states[:, 1:].mean(dim=1), dim=1)
    torch.testing.assert_close(encoder.encode(pictures), expected, atol=1e-6, rtol=0)


def test_a_text_is_cut_at_the_tokenizers_limit_or_512_tokens(in_tinyhub, tmp_path):
    import shutil

    texts = ["a red circle", "", "red " * 600]
    whole = load_text_encoder(TEXT, "cpu")
    assert [len(ids) for ids in whole.tokenize(texts)["input_ids"]][1:] == [2, 512]
    folder = tmp_path / "cut"
    shutil.copytree(in_tinyhub / TEXT, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 7}))
    cut = load_text_encoder(str(folder), "cpu")
    assert len(cut.tokenize(texts)["input_ids"][-1]) == 7
    assert cut.cache_key != whole.cache_key, "another tokenizer gives other rows"
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UnavailableError):
        load_text_encoder(str(folder), "cpu").encode(texts)


def test_text_follows_its_definition(encoders, in_tinyhub):
    from transformers import XLMRobertaModel

    whole = XLMRobertaModel.from_pretrained(TEXT, add_pooling_layer=False).eval()
    texts = ["a red circle", "", "blue?"]
    rows = encoders.text.encode(texts)
    for text, row in zip(texts, rows, strict=True):
        tokens = encoders.text.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            embedded = whole(**tokens, output_hidden_states=True).hidden_states[0][0, 1:]
        torch.testing.assert_close(row, torch.nn.functional.normalize(embedded.mean(dim=0), dim=0), atol=1e-6, rtol=0)


def test_a_row_depends_on_its_item_alone(encoders, pictures):
    texts = ["red", "a small blue square left of the large red circle " * 30, "", "two stars"]
    for encoder, items in ((encoders.vision, pictures), (encoders.text, texts)):
        together = encoder.encode(items)
        torch.testing.assert_close(together, torch.cat([encoder.encode([item]) for item in items]), atol=1e-6, rtol=0)
        torch.testing.assert_close(together.flip(0), encoder.encode(items[::-1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(items)))


def test_texts_are_cut_at_512_tokens(encoders):
    long = "red " * 600
    torch.testing.assert_close(encoders.text.encode([long]), encoders.text.encode([long + "blue star"]))


def test_a_checkpoint_that_is_only_a_bin(in_tinyhub, tmp_path, pictures):
    """The hub's older checkpoints hold no safetensors; they are read without running what is pickled in them."""
    import shutil

    from safetensors.torch import load_file

    for name, load, items in ((VISION, load_vision_encoder, pictures), (TEXT, load_text_encoder, ["a red star"])):
        folder = tmp_path / name
        shutil.copytree(in_tinyhub / name, folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        expected, got = load(name, "cpu"), load(str(folder), "cpu")
        assert torch.equal(expected.encode(items), got.encode(items))
        assert got.signature.split("#")[1] == expected.signature.split("#")[1], "the fingerprint is that of the weights"


def test_a_checkpoint_without_the_weights_is_refused(in_tinyhub, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    shutil.copytree(in_tinyhub / VISION, folder)
    state = {
        key: tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
        if "vision_model.encoder.layers.1" not in key
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match="its checkpoint lacks .* of the weights"):
        load_vision_encoder(str(folder), "cpu")


@pytest.mark.parametrize(
    ("load", "variable"), [(load_vision_encoder, "VISION_ENCODER"), (load_text_encoder, "TEXT_ENCODER")]
)
def test_an_encoder_that_is_not_here(load, variable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError) as error:
        load("nobody/nothing", "cpu")
    assert "hf download nobody/nothing" in str(error.value) and f"export LMMS_EVAL_EMI_{variable}=" in str(error.value)


def test_loading_is_quiet(in_tinyhub):
    code = f"from lmms_eval_emi import load_encoders; load_encoders({VISION!r}, {TEXT!r}, 'cpu')"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=in_tinyhub, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_preprocessing_does_not_depend_on_torchvision(in_tinyhub, tmp_path):
    code = f"""
import sys
sys.modules["torchvision"] = None
import numpy, torch
from PIL import Image
from lmms_eval_emi import load_encoders
pictures = [Image.fromarray(numpy.load(path)) for path in sys.argv[2:]]
numpy.save(sys.argv[1], load_encoders({VISION!r}, {TEXT!r}, "cpu").vision.encode(pictures).numpy())
"""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype="uint8") for h, w in ((40, 61), (200, 90), (33, 32))]
    paths = [tmp_path / f"{number}.npy" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        np.save(path, picture)
    found = tmp_path / "without.npy"
    subprocess.run([sys.executable, "-c", code, str(found), *map(str, paths)], cwd=in_tinyhub, check=True)
    vision = load_encoders(VISION, TEXT, "cpu").vision
    np.testing.assert_array_equal(vision.encode([Image.fromarray(one) for one in pictures]).numpy(), np.load(found))


def test_preprocessing_is_that_of_transformers(in_tinyhub, pictures):
    """Against both of its backends: the one it resembles to the pixel, the other to a level."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ours, pillow = Preprocessing(VISION), CLIPImageProcessorPil.from_pretrained(VISION)
    for picture in pictures:
        expected = pillow(images=picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        assert np.abs((ours(picture) - expected) * ours.std[:, None, None] * 255).max() < 1.01


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"],
)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (64, 48), (1, 5000), (5000, 2)])
def test_images_of_any_mode_and_size(in_tinyhub, mode, size):
    pixels = Preprocessing(VISION)(Image.new(mode, size))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32 and np.isfinite(pixels).all()


def test_a_single_pixel_keeps_its_colour(in_tinyhub):
    preprocessing = Preprocessing(VISION)
    pixels = preprocessing(Image.new("RGB", (1, 1), (255, 0, 0)))
    expected = (np.array([1, 0, 0]) - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(pixels, np.broadcast_to(expected[:, None, None], pixels.shape), atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_transparent_parts_are_white(in_tinyhub, mode):
    preprocessing = Preprocessing(VISION)
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    black.putpixel((3, 3), (0, 0, 0, 255))
    if mode in ("P", "L", "RGB"):  # these name one colour or entry that is transparent
        drawn = Image.new(mode, (8, 8), 7 if mode != "RGB" else (7, 7, 7))
        drawn.putpixel((3, 3), 0 if mode != "RGB" else (0, 0, 0))
        if mode == "P":
            drawn.putpalette([0] * 768)
        drawn.info["transparency"] = 7 if mode != "RGB" else (7, 7, 7)
    else:
        drawn = black.convert(mode)
    white = Image.new("RGB", (8, 8), "white")
    white.putpixel((3, 3), (0, 0, 0))
    np.testing.assert_array_equal(preprocessing(drawn), preprocessing(white))


class CountingEncoder:
    """Encodes a number as a row, counts what it encodes, and may run out of memory."""

    def __init__(self, room: int | None = None):
        self.name, self.device, self.room, self.batches = "counting", torch.device("cuda" if room else "cpu"), room, []

    def to(self, device):
        self.device = device

    def encode(self, items):
        if self.device.type == "cuda" and len(items) > (self.room or 0):
            raise torch.OutOfMemoryError("no room")
        self.batches.append((self.device.type, len(items)))
        return torch.tensor([[float(item)] for item in items])


def test_each_distinct_item_is_encoded_once():
    from lmms_eval_emi.encoders import Encoders
    from lmms_eval_emi.scoring.embed import embed_splits

    class Lengths(CountingEncoder):
        dimension, signature = 1, "lengths"

        def prepare(self, item):
            return item

        def encode(self, items):
            return super().encode([len(item) for item in items])

    text = Lengths()
    words = ["ccc", "a", "ccc", "bb", "a", "ccc"]
    samples = {name: [Sample(None, word, word, word, row) for row, word in enumerate(words)] for name in ("one", "two")}
    embedded = embed_splits(samples, Encoders(Lengths(), text), batch_size=2)
    assert embedded["two"].t.flatten().tolist() == [len(word) for word in words]
    assert text.batches == [("cpu", 2), ("cpu", 1)]


@pytest.mark.parametrize(("room", "devices"), [(10, {"cuda"}), (1, {"cpu"})])
def test_where_the_gpu_has_no_room(room, devices, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    encoder, items = CountingEncoder(room), list(range(100))
    rows = torch.cat(list(encode_batches(encoder, items, 64)))
    assert rows.flatten().tolist() == items
    assert {device for device, _ in encoder.batches} == devices
    assert ("going on with the CPU" in caplog.text) == (devices == {"cpu"})


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_off_while_encoding_and_as_it_was_afterwards(tf32):
    """lmms-eval's llava model allows it for the whole process."""

    class Watching(CountingEncoder):
        def encode(self, items):
            self.seen = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
            return super().encode(items)

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        encoder = Watching()
        list(encode_batches(encoder, [1], 1))
        assert encoder.seen == ("ieee", "ieee")
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_no_memory_on_the_cpu_is_an_error_with_a_remedy():
    class Full(CountingEncoder):
        def encode(self, items):
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(UnavailableError, match="LMMS_EVAL_EMI_BATCH_SIZE"):
        list(encode_batches(Full(), [1], 64))


def test_splits_share_what_they_have_in_common(encoders, pictures, monkeypatch):
    calls = {"vision": 0, "text": 0}
    for name in calls:
        encoder = getattr(encoders, name)
        monkeypatch.setattr(
            encoder,
            "encode",
            lambda items, name=name, encode=encoder.encode: (
                calls.__setitem__(name, calls[name] + len(items)),
                encode(items),
            )[1],
        )
    same = [Sample(pictures[row % 2], "red?", f"answer {row}", "reference", id=row) for row in range(4)]
    embedded = embed_splits({"a": same, "b": same[:2]}, encoders)
    assert calls == {"vision": 2, "text": 6}
    first, second = embedded["a"].groups[:2]
    assert first != second and embedded["a"].groups == [first, second, first, second]
    assert embedded["b"].ids == [("0", "reference"), ("1", "reference")]
    assert torch.equal(embedded["a"].y_hat[:2], embedded["b"].y_hat)
    assert embedded["a"].encoders == encoders.signature


def test_an_image_that_cannot_be_read_is_named(encoders, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    broken = Sample(tmp_path / "broken.jpg", "red?", "yes", "no", id=17)
    with pytest.raises(SampleError, match="split a, row 17: its image cannot be read"):
        embed_splits({"a": [broken]}, encoders)
    with pytest.raises(SampleError, match="split a, row 3: .*missing.jpg"):
        embed_splits({"a": [Sample(tmp_path / "missing.jpg", "red?", "yes", "no", id=3)]}, encoders)


def test_images_are_told_apart_by_what_is_seen(encoders):
    """Two palettes make two pictures of the same indices; a file and its decoded image are one."""
    import io

    indices = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L")
    pictures = []
    for colour in range(2):
        picture = indices.convert("P")
        picture.putpalette([value for index in range(256) for value in ((index, 0, 0), (0, index, 0))[colour]])
        pictures.append(picture)
    turned = builder.picture(np.random.default_rng(0))
    exif = turned.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    pictures += [buffer.getvalue(), Image.open(io.BytesIO(buffer.getvalue()))]
    embedded = embed_splits(
        {"a": [Sample(picture, "red?", "yes", "no", row) for row, picture in enumerate(pictures)]}, encoders
    )["a"]
    assert embedded.groups[0] != embedded.groups[1]
    assert not torch.allclose(embedded.v[0], embedded.v[1])
    assert torch.equal(embedded.v[2], embedded.v[3])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), 3, object()])
def test_what_is_no_image(image):
    with pytest.raises(SampleError, match="row 5: expected a Pillow image, encoded bytes or a path in image"):
        Sample(image, "red?", "yes", "no", id=5)


def test_nothing_to_embed(encoders):
    with pytest.raises(ValueError, match="splits: expected at least one split"):
        embed_splits({}, encoders)
    with pytest.raises(ValueError, match="split a: expected at least one sample"):
        embed_splits({"a": []}, encoders)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="expected one of 0 CUDA devices, got 'cuda:3'"):
            resolve_device("cuda:3")


# Other checkpoints: another preprocessing is honoured or refused, another encoder is one file and one entry.


def checkpoint(folder, kind):
    """A small checkpoint of a kind, with the preprocessing that such checkpoints have."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    if kind == "siglip":
        vision = {**sizes, "intermediate_size": 64}
        text = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 40,
        }
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
        preprocessing = {
            "size": {"height": 32, "width": 32},
            "resample": 3,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        preprocessing |= {"do_center_crop": None, "image_processor_type": "SiglipImageProcessor"}
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
        preprocessing = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 2}
        preprocessing |= {"image_processor_type": "BitImageProcessor", "do_resize": True, "do_center_crop": True}
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model.eval()


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_other_vision_towers_follow_their_definition(kind, tmp_path, pictures):
    from transformers import AutoImageProcessor

    whole = checkpoint(tmp_path / kind, kind)
    encoder = load_vision_encoder(str(tmp_path / kind), "cpu")
    theirs = AutoImageProcessor.from_pretrained(tmp_path / kind, backend="torchvision")
    tower = whole.vision_model if kind == "siglip" else whole
    for picture in pictures[:3]:
        pixels = theirs(images=picture, return_tensors="pt")["pixel_values"]
        assert (torch.from_numpy(encoder.preprocessing(picture)) - pixels[0]).abs().max() < 0.02
        with torch.no_grad():
            states = tower(torch.from_numpy(encoder.preprocessing(picture))[None]).last_hidden_state
        expected = torch.nn.functional.normalize(states[:, 1 if kind == "dinov2" else 0 :].mean(dim=1), dim=1)
        torch.testing.assert_close(encoder.encode([picture]), expected, atol=1e-6, rtol=0)
    assert encoder.dimension == 32 and encoder.signature.endswith("/patch-mean/alpha-on-white")


def test_a_sentence_encoder_is_chosen_by_its_prefix(in_tinyhub):
    from transformers import AutoTokenizer, XLMRobertaModel

    encoder = load_text_encoder(f"mean:{TEXT}", "cpu")
    whole, tokenizer = XLMRobertaModel.from_pretrained(TEXT).eval(), AutoTokenizer.from_pretrained(TEXT)
    for text in ("a red circle left of a star", "blue"):
        with torch.no_grad():
            states = whole(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        torch.testing.assert_close(encoder.encode([text, "x " * 40])[0], expected, atol=1e-6, rtol=0)
    assert "/mean" in encoder.signature


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ({"resample": 1}, "resample 1; known are 2"),
        ({"do_pad": True}, "the step do_pad"),
        ({"crop_size": {"longest_edge": 3}}, "crop_size {'longest_edge': 3}"),
    ],
)
def test_a_preprocessing_that_is_not_known_is_refused_by_name(in_tinyhub, tmp_path, changes, message):
    import json
    import shutil

    shutil.copytree(in_tinyhub / VISION, tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "preprocessor_config.json").read_text())
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UnavailableError, match=message.replace("{", "\\{").replace("}", "\\}")):
        load_vision_encoder(str(tmp_path / "clip"), "cpu")


@pytest.mark.parametrize(
    ("changes", "shape", "largest"),
    [
        ({"do_normalize": False}, (3, 32, 32), 1.0),
        ({"do_center_crop": False, "size": {"height": 24, "width": 40}}, (3, 24, 40), None),
        ({"do_rescale": False, "do_normalize": False}, (3, 32, 32), 255.0),
    ],
)
def test_steps_that_are_turned_off_are_left_out(in_tinyhub, tmp_path, changes, shape, largest):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **changes})
    )
    pixels = Preprocessing(str(tmp_path))(Image.new("RGB", (50, 60), "white"))
    assert pixels.shape == shape and (largest is None or pixels.max() == pytest.approx(largest))


def test_encoders_of_unequal_width_are_refused_with_the_pairs_that_fit(in_tinyhub, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 32}, "crop_size": 32}')
    with pytest.raises(ValueError, match=r"gives 16 dimensions and the text encoder .* 32.*Pairs that fit: with 768"):
        load_encoders(str(tmp_path), TEXT, "cpu")


def test_a_checkpoint_of_no_known_kind_is_refused_with_the_known_ones(in_tinyhub):
    with pytest.raises(UnavailableError, match=r"of the kind 'clip'; known are xlm-roberta, mean"):
        load_text_encoder(VISION, "cpu")
