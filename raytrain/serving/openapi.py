"""The description of a server for people and programs: /openapi.json and /docs, with the columns of its model."""

import html
import json
from typing import Any

import raytrain
from raytrain.serving.image_rows import takes_images
from raytrain.serving.limits import Limits
from raytrain.serving.requests import DOCUMENT, OPTIONS
from raytrain.serving.served import Model
from raytrain.tasks.predicting import Decoding, Generating, Predicting

TEXT = {"type": "string", "minLength": 1}
IMAGE = {"type": "string", "contentEncoding": "base64", "description": "A PNG, JPEG, WEBP, GIF, BMP or TIFF file."}
WORDS = {"type": "array", "items": TEXT, "minItems": 1}


def openapi(model: Model, limits: Limits) -> dict[str, Any]:
    """The description in OpenAPI 3.1."""
    answers = {"type": "array", "items": {"oneOf": [_ref("Prediction"), _ref("Error")]}}
    told = {"200": _answer("A prediction for one text, or one for each row in their order.", _either(answers))}
    for status, what in _STATUSES.items():
        told[status] = _answer(what, _ref("Error"))
    ready = {"200": {"description": "It is."}, "503": _answer("It is not.", _ref("Error"))}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model.card.name,
            "version": model.hash,
            "description": f"Served by raytrain {raytrain.__version__}.",
        },
        "security": [{"token": []}],
        "paths": {
            "/predict": {"post": {"summary": "Predict.", "requestBody": _body(model, limits), "responses": told}},
            "/model": {"get": {"summary": "The model.", "responses": _ok("application/json")}},
            "/metrics": {"get": {"summary": "Metrics for Prometheus.", "responses": _ok("text/plain")}},
            "/healthz": {"get": {"summary": "Whether the process answers.", "security": [], "responses": _ok()}},
            "/readyz": {"get": {"summary": "Whether it can predict.", "security": [], "responses": ready}},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Row": _row(model), "Prediction": _prediction(model), "Error": _ERROR},
        },
    }


_STATUSES = {
    "400": "Not JSON.",
    "401": "The token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many rows.",
    "422": "The content can't be used; for one text also: the text can't be used.",
    "500": "The model failed.",
    "503": "Too many rows wait: try again after the seconds in Retry-After.",
    "504": "Not answered in time.",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(what: str, schema: Any) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _ok(kind: str = "application/json") -> dict[str, Any]:
    return {"200": {"description": "OK", "content": {kind: {}}}}


def _either(answers: Any) -> dict[str, Any]:
    one = {"type": "object", "properties": {"prediction": _ref("Prediction")}, "required": ["prediction"]}
    many = {"type": "object", "properties": {"predictions": answers}, "required": ["predictions"]}
    return {"oneOf": [one, many]}


def _column(model: Model, name: str) -> dict[str, Any]:
    if takes_images(model.task):
        return IMAGE
    if name in model.task.word_columns():
        return WORDS
    return TEXT if name in model.task.text_columns() else {}


def _takes_questions(model: Model) -> bool:
    """Whether a text alone may stand for the columns."""
    return isinstance(model.task, Predicting) and bool(model.task.stand_ins())


def _row(model: Model) -> dict[str, Any]:
    columns = model.task.input_columns()
    if _takes_questions(model):
        assert isinstance(model.task, Predicting)
        names = dict.fromkeys([*columns, *model.task.target_columns(), *model.task.stand_ins()])
        ways = [{"required": [name]} for name in model.task.stand_ins()]
        return {"type": "object", "properties": {name: _column(model, name) for name in names}, "anyOf": ways}
    found = {name: _column(model, name) for name in columns}
    if not model.joins:
        found[DOCUMENT] = {"description": "Neighbouring rows of one document have the same value."}
    if model.task.word_columns():
        with_text = {"type": "object", "properties": {"text": TEXT}, "required": ["text"]}
        return {"anyOf": [{"type": "object", "properties": found, "required": columns}, with_text]}
    return {"type": "object", "properties": found, "required": columns}


def _body(model: Model, limits: Limits) -> dict[str, Any]:
    columns = model.task.input_columns()
    one = {"anyOf": [TEXT, WORDS]} if model.task.word_columns() else TEXT
    inputs: dict[str, Any] = {"rows": {"type": "array", "items": _ref("Row"), "maxItems": limits.max_rows}}
    if takes_images(model.task):
        inputs |= {"image": IMAGE, "images": {"type": "array", "items": IMAGE, "maxItems": limits.max_rows}}
    elif len(columns) == 1 or _takes_questions(model):
        inputs |= {"text": one, "texts": {"type": "array", "items": one, "maxItems": limits.max_rows}}
    options = {
        "probabilities": {"type": "boolean", "default": False, "description": "The probability of each label too."},
        "threshold": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "embeddings": {"type": "boolean", "default": False, "description": "A vector instead of labels."},
    }
    if isinstance(model.task, Generating):
        default = min(model.task.default_new_tokens, limits.max_new_tokens)
        least = 1 if default else 0
        number = {"type": "integer", "minimum": least, "maximum": limits.max_new_tokens, "default": default}
        options["max_new_tokens"] = {**number, "description": "Tokens that are generated for a row at most."}
    schema = {
        "type": "object",
        "properties": {**inputs, **options},
        "oneOf": [{"required": [name]} for name in inputs],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"application/json": {"schema": schema, "example": _example(model)}}}


def _example(model: Model) -> dict[str, Any]:
    columns = model.task.input_columns()
    if _takes_questions(model):
        return {"text": "Where is my parcel?"}
    if takes_images(model.task):
        return {"image": "iVBORw0KGgo..."}
    if len(columns) == 1 and (model.task.word_columns() or columns[0] in model.task.text_columns()):
        return {"text": "a fine film"}
    return {"rows": [{name: "a fine film" if _column(model, name) else 1 for name in columns}]}


def _prediction(model: Model) -> dict[str, Any]:
    assert isinstance(model.task, Predicting)
    names = model.task.output_columns(model.card.state, Decoding(probabilities=True))
    names = [*names, model.task.generated_column] if isinstance(model.task, Generating) else names
    labels = model.card.state.get("labels")
    known: dict[str, Any] = {"predicted_label": {"type": "string", **({"enum": list(labels)} if labels else {})}}
    numbers = {"type": "number", "minimum": 0, "maximum": 1}
    found = {name: known.get(name, numbers if name.startswith("probability") else {}) for name in names}
    return {"type": "object", "properties": {**found, "embedding": {"type": "array", "items": {"type": "number"}}}}


def docs_page(model: Model, limits: Limits, *, has_token: bool) -> str:
    """A page for people. It loads nothing from elsewhere and runs no script."""
    example = json.dumps(_example(model), ensure_ascii=False)
    rows = json.dumps({"rows": [dict.fromkeys(model.task.input_columns(), "...")]}, ensure_ascii=False)
    about = "".join(f"<tr><td>{name}</td><td>{_told(value)}</td></tr>" for name, value in model.about().items())
    token = " -H 'Authorization: Bearer TOKEN'" if has_token else ""
    parts = [
        f"<h1>{_told(model.card.name)}</h1><table>{about}</table>",
        f"<h2>POST /predict</h2><pre>curl SERVER/predict{token} -d {_told(repr(example))}</pre>",
        f"<p>For many rows: <code>{_told(rows)}</code>, at most {limits.max_rows:,} and {limits.max_body_mb:g} MB. "
        f"Options: {', '.join(f'<code>{name}</code>' for name in OPTIONS)}.</p>",
        "<table>" + "".join(f"<tr><td>{code}</td><td>{_told(what)}</td></tr>" for code, what in _STATUSES.items()),
        "</table><h2>GET</h2><p>/model, /metrics, /healthz, /readyz, <a href='/openapi.json'>/openapi.json</a></p>",
    ]
    return f"<!doctype html><meta charset='utf-8'><title>{_told(model.card.name)}</title>{''.join(parts)}"


def _told(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
