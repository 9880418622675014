"""The model card of an exported model: README.md, made from its raytrain.json and from what was measured. No torch.

It says how to load the model, and names its results, its data and its base model. A hub shows it as the model's page.
"""

import copy
from collections.abc import Iterable
from typing import Any

from raytrain.config import Mark
from raytrain.config.fields import marked, with_paths
from raytrain.config.io import to_yaml

CARD = "README.md"
BEST = "best"  # folder of a run with its best model
FACTS = "raytrain.json"
FACTS_VERSION = 2
"""The newest layout of raytrain.json that is read. It grows when an older raytrain would misread the file: 2 has
`adapter` or `threshold`. A file has the lowest version that suits it; without one: 1."""
PLAIN_VERSION, ADAPTER_VERSION = 1, 2
"""The layout that is written for a whole model, and for an adapter."""
BASE_HASH = "sha256"  # of the frozen weights, in `base_model` of an adapter's raytrain.json
PIPELINES = {
    "causal_lm": "text-generation",
    "chat": "text-generation",
    "image_classification": "image-classification",
    "masked_lm": "fill-mask",
    "preference": "text-generation",
    "regression": "text-classification",
    "reward": "text-classification",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
}
AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "chat": "AutoModelForCausalLM",
    "image_classification": "AutoModelForImageClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "preference": "AutoModelForCausalLM",
    "regression": "AutoModelForSequenceClassification",
    "reward": "AutoModelForSequenceClassification",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
WEIGHTS = (".safetensors", ".onnx", ".gguf", ".bin")
MOST_LABELS = 50  # of a longer list the card shows the beginning; raytrain.json has all


def model_card(facts: dict[str, Any], results: dict[str, dict[str, float]]) -> str:
    """The text of README.md.

    Args:
        facts: The contents of raytrain.json.
        results: Split -> metrics of this very model, by name.
    """
    facts = without_folders(facts)
    parts = [_front_matter(facts, results), f"# {facts['name']}", _origin(facts), *_usage(facts), *_export(facts)]
    if results:
        parts += ["## Results", _table(["metric", *results], _result_rows(results)), _of_the_trained(facts)]
    if labels := facts["state"].get("labels"):
        parts += ["## Labels", _labels(labels)]
    parts += ["## Inputs", _inputs(facts), "## Data", *_data(facts), "## Lineage", _lineage(facts)]
    parts += ["## Training", f"```yaml\n{to_yaml(facts['config']).rstrip()}\n```"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts += ["## Versions", f"{versions}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_folders(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with the last part only of each path on this file system: the card may be published, and the folders
    of its author tell a reader nothing. raytrain.json has them."""
    base, config = facts["base_model"], copy.deepcopy(facts["config"])
    for key in (*marked(Mark.PATH), *marked(Mark.PATH_OR_HUB_ID)):
        *sections, name = key.split(".")
        place: Any = config
        for section in sections:
            place = (place or {}).get(section)
        if isinstance(place, dict) and place.get(name):
            place[name] = with_paths(place[name], _last_part)
    if arguments := config.get("task", {}).get("args"):  # of a task of the user's own
        config["task"]["args"] = _last_parts(arguments)
    data = {split: {**info, "paths": _last_part(info["paths"])} for split, info in facts["data"].items()}
    return {
        **facts,
        "config": config,
        "data": data,
        "base_model": None if base is None else {**base, "path": _last_part(base["path"])},
        **{
            name: {**about, "rows_of": _last_part(about["rows_of"])}
            for name in ("export", "threshold_chosen")
            if (about := facts.get(name))
        },
    }


def _last_part(path: Any) -> Any:
    """The last part of an absolute path, or of each in a list; anything else is kept."""
    if isinstance(path, list):
        return [_last_part(one) for one in path]
    is_absolute = isinstance(path, str) and path.startswith(("/", "~/"))
    return path.rstrip("/").rpartition("/")[2] or path if is_absolute else path


def _last_parts(value: Any) -> Any:
    """The same at any depth, for strings with more than one folder in them."""
    if isinstance(value, dict):
        return {key: _last_parts(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_last_parts(one) for one in value]
    return _last_part(value) if isinstance(value, str) and value.count("/") > 1 else value


def _front_matter(facts: dict[str, Any], results: dict[str, dict[str, float]]) -> str:
    """The metadata that a hub reads. A base model in a local folder is left out, since a hub could not find it."""
    export = facts.get("export", {})
    other = "peft" if "adapter" in facts else "transformers"
    library = export["format"] if export.get("format") in ("onnx", "gguf") else other
    fields: dict[str, Any] = {name: export[name] for name in ("license", "language") if export.get(name)}
    fields |= {"library_name": library, "tags": ["raytrain"]}
    kind = PIPELINES.get(facts["task"]["kind"])
    if kind:
        fields["pipeline_tag"] = kind
    base = facts["base_model"]
    if base is not None and not base["is_folder"]:
        fields["base_model"] = base["path"]
    if results and kind:
        fields["metrics"] = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
        of_splits = [
            {
                "task": {"type": kind},
                "dataset": {"name": f"{facts['name']} ({split})", "type": facts["data_content"], "split": split},
                "metrics": [{"type": name, "value": value} for name, value in metrics.items()],
            }
            for split, metrics in results.items()
        ]
        fields["model-index"] = [{"name": facts["name"], "results": of_splits}]
    return f"---\n{to_yaml(fields).rstrip()}\n---"


def _origin(facts: dict[str, Any]) -> str:
    base = facts["base_model"]
    if base is None:
        begun = "Trained from random weights"
    else:
        revision = f", revision `{base['revision']}`" if base["revision"] else ""
        begun = f"Fine-tuned from `{base['path']}`{revision}"
    return (
        f"{begun} with raytrain {facts['versions']['raytrain']}. These are the weights after step {facts['step']} "
        f"(epoch {facts['epoch']})."
    )


def _usage(facts: dict[str, Any]) -> list[str]:
    """How to load the model and use it, for the tasks that Transformers has a pipeline for."""
    task, length = facts["task"], facts["max_length"]
    kind = PIPELINES.get(task["kind"])
    if "adapter" in facts:
        return _adapter_usage(facts)
    if facts.get("export", {}).get("format") == "gguf":
        return _gguf_usage(task["kind"])
    if kind is None or facts.get("export", {}).get("format", "hf") != "hf":
        return []
    if task["kind"] == "reward":
        options, call = 'function_to_apply="none"', "model(model.tokenizer.apply_chat_template(turns, tokenize=False))"
        note = (
            f"`turns` is a conversation of up to {length} tokens that ends with the answer; the score is its reward, "
            "which means something beside those of other answers to the same prompt alone."
        )
    elif kind == "text-classification":
        is_number = task["kind"] == "regression"
        options = "truncation=True" + (", top_k=None" if is_number or task["multi_label"] else "")
        options += ', function_to_apply="none"' if is_number else ""
        call = 'model({"text": "...", "text_pair": "..."})' if task["text_pair_column"] else 'model("...")'
        note = f"`truncation=True` cuts texts at {length} tokens, as in training; without it a long text is an error."
        if is_number:
            note += " A target is its score times the deviation plus the mean, of `state` in `raytrain.json`."
    elif kind == "image-classification":
        options = 'function_to_apply="sigmoid", top_k=None' if task["multi_label"] else ""
        call, note = 'model("image.png")', "Images are resized and scaled as `preprocessor_config.json` says."
    elif task["kind"] in ("chat", "preference"):
        options, call = "", 'model([{"role": "user", "content": "..."}], max_new_tokens=256)'
        note = f"Trained on conversations of up to {length} tokens, with the chat template of the tokenizer."
    elif kind == "text-generation":
        options, call = "", 'model("...", max_new_tokens=50)'
        note = f"Trained on texts of up to {length} tokens, each with the tokenizer's end-of-text token at its end."
    elif kind == "fill-mask":
        options, call = "", 'model(f"A text with a {model.tokenizer.mask_token}.")'
        note = f"Trained on texts of up to {length} tokens."
    else:
        tags = [label for label in facts["state"]["labels"] if label != "O"]
        is_iob = any(tag.startswith("B-") for tag in tags) and all(tag.startswith(("B-", "I-")) for tag in tags)
        # The pipeline joins the words of an entity by these two letters alone.
        options = 'aggregation_strategy="simple"' if is_iob else 'aggregation_strategy="none"'
        call = 'model("...")'
        note = (
            f"Texts are cut at {length} tokens, as in training; `stride` of the pipeline tags longer ones in windows."
        )
        if task["case_feature"]:
            note += (
                " The model was trained with `task.case_feature`, which Transformers' pipeline does not compute: it "
                "tags worse there than in the results below."
            )
    if facts["config"]["data"].get("clean"):
        note += (
            " Texts were cleaned before training. Do the same with those that you give the model: "
            "`raytrain.data.stages.clean.clean_text(text, CleanConfig(**clean))`, with `clean` of `config.data` in "
            "`raytrain.json`."
        )
    arguments = ", ".join(filter(None, [repr(kind), "FOLDER", options]))
    code = f"from transformers import pipeline\n\nmodel = pipeline({arguments})\nprint({call})"
    code = code.replace("'", '"').replace("FOLDER", '"path/to/this/folder"')
    return ["## Use", f"```python\n{code}\n```", note]


def _gguf_usage(kind: str) -> list[str]:
    """How to run the file with llama.cpp: as a chat, or to continue a text."""
    options = "-cnv" if kind in ("chat", "preference") else '-no-cnv -p "..."'
    return ["## Use", f"```bash\nllama-cli -m model.gguf {options}\n```"]


def _adapter_usage(facts: dict[str, Any]) -> list[str]:
    """How to load an adapter with its base, by PEFT."""
    base, auto_class = facts["base_model"], AUTO_CLASSES.get(facts["task"]["kind"])
    note = (
        f"These are an adapter's weights. They belong to `{base['path']}`, whose weights have the SHA-256 "
        f"`{base[BASE_HASH]}` (over names and values, as raytrain computes it). `raytrain export` merges the two."
    )
    if auto_class is None:
        return ["## Use", note]
    revision = f', revision="{base["revision"]}"' if base["revision"] else ""
    code = (
        f"from peft import PeftModel\nfrom transformers import AutoConfig, AutoTokenizer, {auto_class}\n\n"
        'folder = "path/to/this/folder"\n'
        f'base = {auto_class}.from_pretrained("{base["path"]}", config=AutoConfig.from_pretrained(folder){revision})\n'
        "model = PeftModel.from_pretrained(base, folder)\ntokenizer = AutoTokenizer.from_pretrained(folder)"
    )
    if facts["task"]["kind"] == "image_classification":
        code = code.replace("tokenizer = ", "processor = ").replace("AutoTokenizer", "AutoImageProcessor")
    if PIPELINES[facts["task"]["kind"]] == "text-generation":
        code = code.replace("AutoTokenizer, ", "AutoTokenizer, GenerationConfig, ")
        code += "\nmodel.generation_config = GenerationConfig.from_pretrained(folder)  # the tokens that end a text"
    return ["## Use", f"```python\n{code}\n```", note]


def _export(facts: dict[str, Any]) -> list[str]:
    """How an export compares with the trained model."""
    if (found := facts.get("export")) is None:
        return []
    is_on_images = facts["task"]["kind"] == "image_classification"
    inputs = "the inputs of the tokenizer, of any number of samples and tokens"
    inputs = "the input `pixel_values`, of any number of images" if is_on_images else inputs
    graph = (
        f" `raytrain.load` and `raytrain predict` take this folder; for onnxruntime `model.onnx` has {inputs}, and the "
        "output `logits`."
        if found["format"] == "onnx"
        else ""
    )
    return [
        "## Export",
        f"Written as {found['format']} in {found['dtype']}. On {found['rows']:,} rows of its data the logits differ "
        f"from the trained model's by at most {found['largest_difference']:.2g}, and {found['agreement']:.2%} of the "
        f"labels are the same.{graph}",
    ]


def _of_the_trained(facts: dict[str, Any]) -> str:
    export = facts.get("export", {})
    is_as_trained = export.get("format", "hf") == "hf" and export.get("dtype", "fp32") == "fp32"
    return "" if is_as_trained else "Measured with the trained model in fp32, before the export."


def _inputs(facts: dict[str, Any]) -> str:
    """What the tokenizer and the training say about inputs."""
    if facts["task"]["kind"] == "image_classification":
        return "Images, resized and scaled as `preprocessor_config.json` says."
    length, train = facts["max_length"], facts["data"].get("train", {})
    cut = f" In the training, {train['num_truncated']:,} of {train['num_samples']:,} samples were." if train else ""
    return f"At most {length:,} tokens, those that mark the beginning and the end included; longer ones are cut.{cut}"


def _lineage(facts: dict[str, Any]) -> str:
    """Where the weights come from, by hashes."""
    base, weights = facts["base_model"], facts.get("files", {})
    lines = [f"Run `{facts['name']}`, step {facts['step']}, data `{facts['data_content']}`."]
    if base is not None:
        known = base["revision"] or base.get("sha256")
        lines.append(f"Base model `{base['path']}`" + (f", `{known}`." if known else ", of an unknown revision."))
    lines += [f"`{name}`: SHA-256 `{weights[name]}`." for name in sorted(weights) if name.endswith(WEIGHTS)]
    return "\n".join(f"- {line}" for line in lines)


def _result_rows(results: dict[str, dict[str, float]]) -> Iterable[list[str]]:
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    for name in names:
        values = (metrics.get(name) for metrics in results.values())
        yield [name, *("" if value is None else f"{value:.4f}" for value in values)]


def _labels(labels: list[str]) -> str:
    more = f", and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
    return (
        f"{len(labels)}, in the order of their ids: " + ", ".join(f"`{name}`" for name in labels[:MOST_LABELS]) + more
    )


def _data(facts: dict[str, Any]) -> list[str]:
    rows = [
        [split, "<br>".join(f"`{path}`" for path in info["paths"]), *(f"{info[name]:,}" for name in COUNTS)]
        for split, info in facts["data"].items()
    ]
    return [
        _table(["split", "files", *(name.removeprefix("num_").replace("_", " ") for name in COUNTS)], rows),
        f"Content hash of the prepared data: `{facts['data_content']}`.",
    ]


COUNTS = ("num_samples", "num_tokens", "num_truncated", "num_quarantined")


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
