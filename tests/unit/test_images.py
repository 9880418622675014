"""Images: from files to what a model takes, what can't be used, and the answers of a trained model."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from saved_models import save_best
from tiny_images import LABELS, TINY_VIT, encoded, image_config, make_image, write_folder
from transformers import CLIPImageProcessorPil

import raytrain
from raytrain.config import ModelConfig, TrainingConfig
from raytrain.data.listing import list_files
from raytrain.data.readers import column_names, read_chunks
from raytrain.data.readers.base import ROW, ReadTask
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.unchanged import refuse_changed
from raytrain.errors import ConfigError, DataError
from raytrain.inference.card import find_model, read_card
from raytrain.models.images import load_image_processor
from raytrain.models.vision import build_vision_model
from raytrain.serving.limits import Limits
from raytrain.serving.replica import answer_rows
from raytrain.serving.requests import HttpError, parse
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import make_task
from raytrain.tasks.base import BatchContext, RowError
from raytrain.tasks.image_classification import ImageClassification

STATE = {"labels": LABELS}
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}


def task_of(**options: Any) -> ImageClassification:
    made = make_task(image_config(Path("/tmp"), **options).task, 128)
    assert isinstance(made, ImageClassification)
    return made


def processor(**image: Any) -> Any:
    return load_image_processor(image_config(Path("/tmp")).model.model_copy(update=image))


def rows_of(cells: list[Any]) -> pa.Table:
    return pa.table({"image": pa.array(cells), "label": pa.array([LABELS[i % 2] for i in range(len(cells))])})


def samples_of(task: ImageClassification, cells: list[Any], **image: Any) -> pa.Table:
    return task.encode(rows_of(cells), processor(**image), STATE).table


def context(ids: list[int], epoch: int = 0, split: str = "train") -> BatchContext:
    return BatchContext(STATE, split, np.array(ids), epoch, np.zeros(len(ids), np.int64), 0, 0)


@pytest.mark.parametrize("kind", ["ViTImageProcessorPil", "BitImageProcessorPil", "ConvNextImageProcessorPil"])
def test_a_batch_is_what_the_models_own_processor_gives(kind: str, tmp_path: Path) -> None:
    """Also for images of other shapes, gray or with a palette or alpha."""
    import transformers

    theirs = getattr(transformers, kind)()
    theirs.save_pretrained(tmp_path)
    images = [make_image(n, mode=mode, size=(40 + 9 * n, 50)) for n, mode in enumerate(("RGB", "L", "P", "RGBA"))]
    task = task_of()
    model = ModelConfig.model_validate({"path": str(tmp_path), "image": {}})
    samples = task.encode(rows_of(list(map(encoded, images))), load_image_processor(model), STATE).table
    batch = {name: torch.from_numpy(array) for name, array in task.collate(samples, context([0, 1, 2, 3])).items()}
    wanted = theirs(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    assert torch.allclose(task.model_inputs(batch)["pixel_values"], wanted, atol=1e-5)


def test_a_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    from transformers import EfficientNetImageProcessorPil

    EfficientNetImageProcessorPil(rescale_offset=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does more with an image"):
        load_image_processor(ModelConfig.model_validate({"path": str(tmp_path), "image": {}}))


def test_forms_of_an_image_are_the_same_sample(tmp_path: Path) -> None:
    data = encoded(make_image(3))
    (tmp_path / "a.png").write_bytes(data)
    task = task_of(image_folder=str(tmp_path))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    forms: list[Any] = [{"bytes": data, "path": "x.png"}, {"bytes": None, "path": "a.png"}]
    first = samples_of(task, [data])["pixels"][0]
    assert first == samples_of(task, forms)["pixels"][0] == samples_of(task, forms)["pixels"][1]
    assert first == samples_of(task, [str(tmp_path / "a.png")])["pixels"][0] == samples_of(task, [uri])["pixels"][0]
    assert len(set(task.compared_texts(rows_of([data])) + task.compared_texts(rows_of(forms)))) == 1
    gray_16 = Image.fromarray(np.full((8, 8), 256 * 77, np.uint16))
    assert set(samples_of(task, [encoded(gray_16)])["pixels"][0].as_py()) == {77}
    gray_ppm = b"P5\n8 8\n65535\n" + np.full((8, 8), 256 * 77, ">u2").tobytes()
    assert set(samples_of(task, [gray_ppm])["pixels"][0].as_py()) == {77}
    turned = make_image(1, size=(8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    by_hand = encoded(turned.transpose(Image.Transpose.ROTATE_270))
    assert samples_of(task, ["turned.png"])["pixels"][0] == samples_of(task, [by_hand])["pixels"][0]


def test_images_that_cant_be_used_are_named_and_the_others_keep_their_labels() -> None:
    good, cut = encoded(make_image(0)), encoded(make_image(1, size=(90, 90)), "JPEG")[:900]
    cells: list[Any] = [
        {"bytes": good, "path": "good.png"},
        {"bytes": b"not an image", "path": "cat/1.png"},
        {"bytes": cut, "path": "cut.jpg"},
        {"bytes": encoded(Image.new("1", (3000, 3000))), "path": "bomb.png"},
        {"bytes": b"", "path": "empty.png"},
        {"bytes": None, "path": "relative.png"},
        {"bytes": None, "path": "/does/not/exist.png"},
        {"bytes": None, "path": None},
        {"bytes": good, "path": "last.png"},
    ]
    found = task_of(max_pixels=1_000_000).encode(rows_of(cells), processor(), STATE)
    assert [one.row for one in found.rejected] == [1, 2, 3, 4, 5, 6, 7]
    assert {one.code for one in found.rejected} == {RowError.BAD_INPUT}
    said = [one.reason for one in found.rejected]
    parts = ("cat/1.png is not an image", "cut.jpg can't be decoded", "3,000 x 3,000", "empty", "task.image_folder")
    for reason, part in zip(said, (*parts, "exist.png can't be read", "is empty"), strict=True):
        assert part in reason
    assert found.table["labels"].to_pylist() == [0, 0]
    assert found.first_rows is not None and found.first_rows.tolist() == [0, 8]


def test_a_line_of_pixels_is_not_resized_to_fill_the_memory(tmp_path: Path) -> None:
    """A file of less than a kilobyte, of few pixels, whose shorter side would become 224 of them."""
    CLIPImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(tmp_path)
    keeps_shape = load_image_processor(ModelConfig(path=str(tmp_path), image={}))
    line, good = encoded(Image.new("RGB", (1, 200_000))), encoded(make_image(0, size=(1, 40)))
    found = task_of().encode(rows_of([line, good]), keeps_shape, STATE)
    assert [one.row for one in found.rejected] == [0] and found.table["labels"].to_pylist() == [1]
    assert "1 x 200,000 pixels" in found.rejected[0].reason and len(line) < 1000


def test_changes_belong_to_the_sample_and_the_epoch() -> None:
    task = task_of(random_flip=True, random_crop=0.3)
    samples = samples_of(task, [encoded(make_image(n)) for n in range(6)])
    whole = task.collate(samples, context([0, 1, 2, 3, 4, 5]))["pixels"]
    parts = [task.collate(samples.slice(n, 1), context([n]))["pixels"][0] for n in range(6)]
    assert np.array_equal(whole, np.stack(parts))
    assert not np.array_equal(whole, task.collate(samples, context([0, 1, 2, 3, 4, 5], epoch=1))["pixels"])
    plain = task.collate_inputs(samples, 0)["pixels"]
    assert np.array_equal(plain, task.collate(samples, context([0, 1, 2, 3, 4, 5], split="test"))["pixels"])
    flips = task_of(random_flip=True).collate(samples, context([0, 1, 2, 3, 4, 5]))["pixels"]
    is_same = [np.array_equal(one, two) for one, two in zip(flips, plain, strict=True)]
    mirrored = [np.array_equal(one[:, :, ::-1], two) for one, two in zip(flips, plain, strict=True)]
    assert all(map(bool.__xor__, is_same, mirrored)) and 0 < sum(mirrored) < 6


def test_batch_normalization_keeps_its_averages_or_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    new = ModelConfig.model_validate({"config": RESNET, "image": {"size": 32}})
    with pytest.raises(ConfigError, match="batch normalization"):
        build_vision_model(new, LABELS, TrainingConfig())
    raw = {key: value for key, value in RESNET.items() if key != "model_type"}
    theirs = AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", num_labels=2, **raw))
    theirs.train()(pixel_values=torch.randn(8, 3, 32, 32))  # averages of something
    theirs.save_pretrained(tmp_path)
    model = build_vision_model(
        ModelConfig.model_validate({"path": str(tmp_path), "image": {}}), LABELS, TrainingConfig()
    ).train()
    values = torch.randn(4, 3, 32, 32)
    before = {name: one.clone() for name, one in model.named_buffers()}
    apart = torch.cat([model(pixel_values=one[None]).logits for one in values])
    together = model(pixel_values=values).logits
    together.sum().backward()
    assert torch.allclose(apart, together, atol=1e-5)
    assert all(torch.equal(before[name], one) for name, one in model.named_buffers())
    assert all(one.grad is not None for name, one in model.named_parameters())


def test_a_folder_is_a_source_with_a_label_for_each_sub_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", 5)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"")
    (folder / "notes.md").write_text("not an image")
    source = image_config(tmp_path).data.train
    (file,) = list_files(source, "data.train")
    assert column_names(file) == ["image", "label"]
    (chunk,) = read_chunks(ReadTask("train", 0, file))
    paths = [cell["path"] for cell in chunk.table["image"].to_pylist()]
    assert paths == ["bright/001.png", "bright/003.png", "dark/000.png", "dark/002.png", "dark/004.png"]
    assert chunk.table["label"].to_pylist() == ["bright"] * 2 + ["dark"] * 3
    assert chunk.table[ROW].to_pylist() == [1, 2, 3, 4, 5]
    refuse_changed({"train": [file]})
    make_image(0, size=(20, 20)).save(folder / "dark" / "000.png")
    assert list_files(source, "data.train")[0].content != file.content
    with pytest.raises(DataError, match="changed while"):
        refuse_changed({"train": [file]})


def test_other_files_in_a_folder_of_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", 4)
    (folder / "README.txt").write_text("Photographs of the sky.")
    config = image_config(tmp_path)
    with pytest.raises(DataError, match=r"README.txt has no column 'image'.*set data.train.format=images"):
        check_sources(config.data, make_task(config.task, 128), "train")
    config = image_config(tmp_path, "data.train.format=images")
    check_sources(config.data, make_task(config.task, 128), "train")
    (file,) = list_files(config.data.train, "data.train")
    assert sum(len(chunk.table) for chunk in read_chunks(ReadTask("train", 0, file))) == 4


def test_a_large_folder_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.readers.images.GROUP", 2)
    monkeypatch.setattr("raytrain.data.sources.TASK_ROWS", 2)
    write_folder(tmp_path / "train", 7)
    files = list_files(image_config(tmp_path).data.train, "data.train")
    tasks = read_tasks({"train": files})
    rows = [row for task in tasks for chunk in read_chunks(task, ["label"]) for row in chunk.table[ROW].to_pylist()]
    assert len(tasks) == 4 and rows == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.image=null"], "model.image.size"),
        (["data.clean.preset=c4"], "data.clean changes texts"),
        (["data.dedup.near=true"], "data.dedup.near compares texts"),
        (["data.max_length=64"], "data.max_length is a number of tokens"),
        (["data.augment.word_drop=0.1"], "task.random_flip"),
        (["model.tokenizer=somewhere"], "no tokenizer"),
        (["model.image.mean=[0.5]"], "give both"),
        (["task.kind=sequence_classification"], "model.image is for task.kind=image_classification"),
    ],
)
def test_mistakes_in_the_config(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        image_config(tmp_path, *overrides)


def test_a_model_that_cant_run_on_the_images_is_refused_before_it_starts(tmp_path: Path) -> None:
    config = image_config(tmp_path, "model.image.size=12")
    task = make_task(config.task, 128)
    with pytest.raises(ConfigError, match=r"model\.image\.size.*12 x 12"):
        shape_on_meta(config, task, STATE)
    fits = image_config(tmp_path)
    assert shape_on_meta(fits, make_task(fits.task, 128), STATE).num_trained > 0


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder / "train", 12)
    return save_best(
        image_config(folder, "model.image.mean=[0.4,0.5,0.6]", "model.image.std=[0.2,0.3,0.4]"), STATE, folder
    )


def test_answers_are_those_of_transformers_own_pipeline(best: str) -> None:
    """Whatever form the images have."""
    from transformers import AutoImageProcessor, pipeline

    images = [make_image(number) for number in range(5)]
    loaded = raytrain.load(best)
    ours = loaded(images, probabilities=True)
    own = AutoImageProcessor.from_pretrained(best, backend="pil")
    theirs = pipeline("image-classification", best, image_processor=own)(images, top_k=None)
    for mine, them in zip(ours, theirs, strict=True):
        assert mine["predicted_label"] == them[0]["label"]
        for one in them:
            assert mine[f"probability_{one['label']}"] == pytest.approx(one["score"], abs=1e-4)
    forms: list[Any] = [encoded(images[0]), np.asarray(images[0]), images[0]]
    assert loaded(forms, probabilities=True) == [ours[0]] * 3
    assert len({len(row["embedding"]) for row in loaded(images, embeddings=True)} | {16}) == 1
    with pytest.raises(DataError, match=r"data\[1\]: image is not an image"):
        loaded([images[0], b"nothing"])


def test_an_onnx_graph_answers_the_same(best: str, tmp_path: Path) -> None:
    out = str(tmp_path / "onnx")
    exported = raytrain.export(best, out, format="onnx", data=str(Path(best).parent / "train"))
    assert exported.largest_difference < 1e-4 and exported.num_rows == 12
    images = [make_image(number) for number in range(3)]
    assert [row["predicted_label"] for row in raytrain.load(out)(images)] == [
        row["predicted_label"] for row in raytrain.load(best)(images)
    ]
    assert "pixel_values" in Path(out, "README.md").read_text()


def test_a_server_takes_base64_and_reads_no_path(best: str) -> None:
    from raytrain.inference.predictor import Predictor
    from raytrain.serving.replica import How

    predictor = Predictor.load(read_card(find_model(best)), device="cpu")
    text = base64.b64encode(encoded(make_image(1))).decode()
    secret = str(Path(best).parent / "train" / "dark" / "000.png")
    bomb = base64.b64encode(encoded(Image.new("1", (5000, 5000)))).decode()

    def asked(**body: Any) -> Any:
        return parse(json.dumps(body).encode(), predictor.task, predictor.card, Limits())

    assert asked(image=text).is_one
    found = asked(images=[text, secret, f"file://{secret}", bomb, 3, f"data:image/png;base64,{text}"]).rows
    assert [isinstance(row, dict) for row in found] == [True, False, False, False, False, True]
    assert found[0] == found[5] and "25,000,000 pixels" in found[3]
    assert asked(rows=[{"image": text}]).rows == [found[0]]
    assert isinstance(asked(rows=[{"image": {"path": secret}}]).rows[0], str)
    with pytest.raises(HttpError, match="unknown key 'text'"):
        asked(text="a fine film")
    answers = answer_rows(predictor, [found[0], found[5]], How())
    assert answers[0] == answers[1] and "predicted_label" in answers[0].text
    row = predictor.task.example_row()  # type: ignore[attr-defined]
    assert not answer_rows(predictor, [row], How())[0].is_refused


def test_half_precision(best: str) -> None:
    """The model's inputs have the type of its weights."""
    task = task_of()
    samples = samples_of(task, [encoded(make_image(n)) for n in range(2)])
    batch = {name: torch.from_numpy(array) for name, array in task.collate(samples, context([0, 1])).items()}
    config = image_config(Path("/tmp"))
    torch.manual_seed(0)
    model = task.build_model(config.model, STATE, config.training).eval()
    exact = task.loss_sum(model, batch)
    assert task.loss_sum(model.bfloat16(), batch).item() == pytest.approx(exact.item(), rel=0.05)
    assert TINY_VIT["num_channels"] == 3
