"""Sections on the task and the model."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.adapter import AdapterConfig
from raytrain.config.base import Affects, Mark, PositiveInt, Section
from raytrain.config.chat import ChatConfig
from raytrain.config.image import ImageClassificationConfig, ImageInputConfig
from raytrain.config.labels import CodeName, Labels
from raytrain.config.preference import PreferenceConfig, RewardConfig


def check_keys(option: str, noun: str, by_label: Mapping[str, Any], labels: Sequence[str], kind: str = "label") -> None:
    """Raises ValueError when a mapping does not have exactly these labels as its keys. `noun`: what its values are;
    `kind`: what its keys are."""
    missing = [label for label in labels if label not in by_label]
    unknown = [label for label in by_label if label not in labels]
    if missing or unknown:
        what = f"has no {noun} for {missing[0]!r}" if missing else f"names {unknown[0]!r}, which is not a {kind}"
        raise ValueError(f"{option} {what}; give one for each of: {', '.join(labels)}")


class SequenceClassificationConfig(Section):
    """One label per text, or with `multi_label` any number of labels."""

    kind: Annotated[Literal["sequence_classification"], Affects.DATA | Affects.SPEED]
    text_column: Annotated[str, Affects.DATA] = "text"
    """Column with the text."""
    text_pair_column: Annotated[str | None, Affects.DATA] = None
    """Column with a second text, for sentence-pair tasks; null: one text."""
    label_column: Annotated[str, Affects.DATA] = "label"
    """Column with the label: a string or integer; with `multi_label` a list of them."""
    labels: Annotated[Labels | None, Affects.DATA] = None
    """The labels in the order of their ids; null: those found in the data, sorted."""
    multi_label: Annotated[bool, Affects.DATA] = False
    """True: each label is decided separately (sigmoid), and a sample may have none or several."""
    label_separator: Annotated[str | None, Affects.DATA] = None
    """With `multi_label`: the separator of the labels in a text cell, such as `|`; null: a cell is a list, or the text
    of one, such as ['a', 'b']."""
    loss: Annotated[CodeName | None, Affects.RESULT] = None
    """package.module:function that gives each sample its loss, from the logits and the true label; null:
    cross-entropy. It is found as `task.target` is."""
    metrics: Annotated[list[CodeName], Affects.RESULT] = []
    """package.module:Class of further metrics, each a subclass of raytrain.tasks.Metric."""
    sources: Annotated[dict[str, str], Affects.RESULT] = {}
    """SHA-256 of the Python files of the packages of `loss` and `metrics`, by their names. raytrain fills it in. A run
    that was started with other files is not resumed."""

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.label_separator is not None and (not self.multi_label or not self.label_separator.strip()):
            raise ValueError("task.label_separator is a text that is not blank, and needs task.multi_label=true")
        return self


class TokenClassificationConfig(Section):
    """A tag per word (named entities, parts of speech)."""

    kind: Annotated[Literal["token_classification"], Affects.DATA | Affects.SPEED]
    tokens_column: Annotated[str, Affects.DATA] = "tokens"
    """Column with the list of words; CoNLL files call it `tokens`."""
    tags_column: Annotated[str, Affects.DATA] = "tags"
    """Column with the list of tags, one per word; CoNLL files call it `tags` (their last column; UPOS in CoNLL-U)."""
    labels: Annotated[Labels | None, Affects.DATA] = None
    """The tags in the order of their ids; null: those found in the data, `O` first, then sorted."""
    case_feature: Annotated[bool, Affects.DATA] = False
    """True: tells the model each word's letter case (lower, Title, UPPER, miXed) through `token_type_ids`, which
    gives an uncased encoder what its tokenizer removes. Needs a model with token-type embeddings."""
    document_context: Annotated[bool, Affects.DATA | Affects.SPEED] = False
    """True: joins neighbouring sentences of a document to samples of up to `data.max_length` tokens, so that the model
    sees the context of a word. Documents are told apart by CoNLL's -DOCSTART- lines or a `document` column."""
    loss: Annotated[CodeName | None, Affects.RESULT] = None
    """package.module:function that gives each tagged word its loss, from the logits and the true tag; null:
    cross-entropy. It is found as `task.target` is."""
    metrics: Annotated[list[CodeName], Affects.RESULT] = []
    """package.module:Class of further metrics, each a subclass of raytrain.tasks.Metric."""
    sources: Annotated[dict[str, str], Affects.RESULT] = {}
    """SHA-256 of the Python files of the packages of `loss` and `metrics`, by their names. raytrain fills it in. A run
    that was started with other files is not resumed."""


class RegressionConfig(Section):
    """One number for a text or a pair of texts, or several."""

    kind: Annotated[Literal["regression"], Affects.DATA | Affects.SPEED]
    text_column: Annotated[str, Affects.DATA] = "text"
    """Column with the text."""
    text_pair_column: Annotated[str | None, Affects.DATA] = None
    """Column with a second text, for sentence-pair tasks; null: one text."""
    target_columns: Annotated[list[str], Field(min_length=1), Affects.DATA] = ["target"]
    """Columns with the numbers that are predicted. Each is scaled by its mean and standard deviation in the training
    data."""
    ranking_column: Annotated[str | None, Affects.DATA] = None
    """Column whose value says which list a row is in, such as a reader or a query. Evaluations then also tell
    `ndcg_at_10`: how well the predictions of the first target order the rows of each list. null: there are no lists."""

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if len(set(self.target_columns)) < len(self.target_columns):
            raise ValueError(
                f"task.target_columns names {max(self.target_columns, key=self.target_columns.count)!r} twice"
            )
        return self


class Cut(StrEnum):
    """What a sample of a language model is cut from."""

    DOCUMENTS = "documents"
    """From one document: short documents make short samples."""
    STREAM = "stream"
    """From documents that are joined, so that samples are full."""


class CausalLmConfig(Section):
    """A language model that predicts each next token of a text."""

    kind: Annotated[Literal["causal_lm"], Affects.DATA | Affects.SPEED]
    text_column: Annotated[str, Affects.DATA] = "text"
    """Column with the text of a document. One with more than `data.max_length` tokens becomes several samples."""
    cut: Annotated[Cut, Affects.DATA | Affects.SPEED] = Cut.DOCUMENTS
    """documents: a sample is a document, or a piece of one; stream: documents are joined, with the end-of-text token
    between them, and cut into samples of `data.max_length` tokens, in which a document sees the ones before it."""
    sample_prompts: Annotated[list[Annotated[str, Field(min_length=1)]], Affects.NOTHING] = []
    """Texts that the model continues at each evaluation, to read in the terminal, `evals.jsonl` and the report."""
    sample_max_new_tokens: Annotated[PositiveInt, Affects.NOTHING] = 64
    """Tokens by which each of `sample_prompts` is continued at most."""
    sample_temperature: Annotated[float, Field(ge=0.0), Affects.NOTHING] = 0.0
    """Of these tokens: 0 takes the most probable one; more draws others too, the same at any number of workers."""


class MaskedLmConfig(Section):
    """A language model that predicts masked words of a text from both sides, such as BERT."""

    kind: Annotated[Literal["masked_lm"], Affects.DATA | Affects.SPEED]
    text_column: Annotated[str, Affects.DATA] = "text"
    """Column with the text of a document. One with more than `data.max_length` tokens becomes several samples."""
    mask_fraction: Annotated[float, Field(gt=0, le=1), Affects.RESULT] = 0.15
    """Share of a sample's tokens that are predicted: 80 % of them are masked, 10 % replaced, 10 % stay."""
    whole_words: Annotated[bool, Affects.RESULT] = True
    """True: chooses words, and predicts all tokens of each; False: chooses tokens."""


class PythonTaskConfig(Section):
    """A task of your own: a class in a Python file of the folder that the command is run in, or in an installed
    package."""

    kind: Annotated[Literal["python"], Affects.DATA | Affects.SPEED]
    target: Annotated[
        str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Affects.DATA | Affects.RESULT | Affects.SPEED
    ]
    """package.module:Class, a subclass of raytrain.tasks.Task."""
    args: Annotated[dict[str, Any], Affects.DATA | Affects.RESULT | Affects.SPEED] = {}
    """Keyword arguments of the class, besides `max_length`, which is data.max_length. Not for passwords or keys."""
    source: Annotated[str | None, Affects.DATA | Affects.RESULT | Affects.SPEED] = None
    """SHA-256 of the Python files of its top-level package. raytrain fills it in. If they change, the data is prepared
    again, and a run that was started with the old ones is not resumed."""


TaskConfig = Annotated[
    SequenceClassificationConfig
    | TokenClassificationConfig
    | RegressionConfig
    | CausalLmConfig
    | ChatConfig
    | ImageClassificationConfig
    | MaskedLmConfig
    | PreferenceConfig
    | RewardConfig
    | PythonTaskConfig,
    Field(discriminator="kind"),
]


class ModelConfig(Section):
    """The model and its origin."""

    path: Annotated[str | None, Affects.RESULT | Affects.SPEED, Mark.PATH_OR_HUB_ID] = None
    """A hub id or a local folder with pretrained weights."""
    config: Annotated[dict[str, Any] | None, Affects.RESULT | Affects.SPEED] = None
    """A Transformers config (with `model_type`): trains a new model with random weights instead of `path`. With
    `task.kind: python`, any settings of a network of your own."""
    tokenizer: Annotated[str | None, Affects.RESULT | Affects.SPEED, Mark.PATH_OR_HUB_ID] = None
    """A hub id or local folder of the tokenizer; null: the one in `model.path`, and with a network of your own none."""
    image: Annotated[ImageInputConfig | None, Affects.RESULT | Affects.SPEED] = None
    """Of `task.kind: image_classification`: what the model takes; null: as `preprocessor_config.json` of `model.path`
    says."""
    revision: Annotated[str | None, Affects.RESULT | Affects.SPEED] = None
    """Branch, tag or commit on the hub; null: its main branch."""
    trust_remote_code: Annotated[bool, Affects.RESULT | Affects.SPEED] = False
    """True runs Python code that comes with the model. Only for a source that you trust."""
    add_tokens: Annotated[list[str], Affects.RESULT | Affects.SPEED] = []
    """Texts that become tokens of their own, such as names of a field. The embedding, and a language model's output,
    get a row for each, which begins as the mean of the others and is trained; best/ has them."""
    attention: Annotated[Literal["auto", "sdpa", "eager", "flash_attention_2"], Affects.RESULT | Affects.SPEED] = "auto"
    """Implementation of the attention: sdpa is torch's, eager is written out, flash_attention_2 needs the package
    flash-attn and GPUs. auto: what Transformers chooses for the model. They differ by rounding, and in their dropout
    masks."""
    # Here and not at the top level: it decides with `path` which weights there are, and is built with them.
    adapter: Annotated[AdapterConfig | None, Affects.RESULT | Affects.SPEED] = None
    """Trains an adapter, and leaves the pretrained weights as they are; null: all weights are trained."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and self.config is None:
            raise ValueError(
                "model.path and model.config: give one of them. model.path=FOLDER_OR_HUB_ID trains a pretrained model; "
                "model.config.model_type=bert model.tokenizer=FOLDER_OR_HUB_ID trains a new one"
            )
        if self.path is not None and self.config is not None:
            raise ValueError(
                "model.path and model.config are both given: add model.config=null to train the pretrained model of "
                "model.path, or model.path=null to train a new model by model.config, which needs model.tokenizer too"
            )
        for token in self.add_tokens:
            if not token.strip() or self.add_tokens.count(token) > 1:
                raise ValueError(f"model.add_tokens: {token!r} is blank, or named twice: leave it out")
        if self.add_tokens and self.adapter is not None:
            raise ValueError(
                "model.add_tokens are rows of the embedding, which stay as they are with model.adapter: leave one of "
                "them out, or train a model with the tokens first and give its best/ as model.path"
            )
        if self.adapter is not None and self.path is None:
            raise ValueError(
                "model.adapter is for a pretrained model, and model.config has random weights, which would stay as "
                "they are: give model.path, or leave model.adapter out"
            )
        return self

    def check_for_transformers(self) -> None:
        """Raises ValueError when `config` can't be that of a Transformers model."""
        if self.config is not None and self.tokenizer is None and self.image is None:
            raise ValueError("model.config needs model.tokenizer: a new model brings no tokenizer of its own")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("model.config needs model_type, for instance bert")

    @property
    def tokenizer_path(self) -> str:
        """Hub id or folder that the tokenizer, or what prepares images, is loaded from; "" for a network that needs
        none."""
        return self.tokenizer or self.path or ""
