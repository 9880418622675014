"""Conversations as text and as tokens, by a chat template, and which of the tokens are answers.

An answer is found by characters: what the template writes for the turns before it, with the header that asks for an
answer, is the beginning of what it writes for all turns. Tokens would not do: those of a beginning are other ones where
an answer begins with a line break. An answer ends with the token that ends its turn; what the template writes after
that is never generated.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raytrain.errors import ConfigError, first_line
from raytrain.tasks.conversations import Conversation, Turn, UnusableError
from raytrain.tasks.nested import texts_in

CHATML = "chatml"
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
_CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + 'END' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIRST_MARK = 0x10F000
"""A character for private use, which stands for a special token in the text of a turn."""
PROBE: list[Turn] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it, and its answers."""

    text: str
    spans: list[tuple[int, int]]
    """Characters [start, stop) of each answer with the end of its turn, ascending."""
    marks: dict[str, str]
    """Character in the text -> the special token that it stands for, which is to be read as text."""


@dataclass(frozen=True)
class Sample:
    """Tokens, and which of them are targets."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """Tokens [start, stop) of each answer."""


class ChatTemplate:
    """A tokenizer's chat template, or another one, checked by a conversation of two turns."""

    def __init__(self, tokenizer: Any, template: str | None, *, as_text: bool):
        """
        Args:
            template: Its text, or CHATML; None: the tokenizer's own.
            as_text: Whether special tokens in texts are read as text; otherwise their conversations can't be used.

        Raises ConfigError when there is none, or it does not end an answer with a single token.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                "chat templates need a tokenizer that knows which characters a token stands for (a tokenizer.json, "
                "not Python code): save it as such, or use another model"
            )
        self._tokenizer, self._as_text = tokenizer, as_text
        self.text = _template_of(tokenizer, template)
        self._has_generation = bool(_GENERATION.search(self.text))
        self.end = self._end_of_turn()
        self.end_id = self._id_of_end()

    def render(self, conversation: Conversation) -> list[Rendered]:
        """The conversation with its answers; where the template writes earlier turns otherwise once others follow, a
        text for each answer, up to its end. Without an answer to learn a single text, which asks for one.

        Raises UnusableError when the template refuses the turns, or a text holds a special token.
        """
        turns, tools, marks = self._marked(conversation)
        if not conversation.trained:
            return [Rendered(self._write(turns, tools, asks=turns[-1]["role"] != "assistant"), [], marks)]
        whole = self._write(turns, tools)
        if self._has_generation:
            return [Rendered(whole, self._generated(turns, tools, conversation.trained), marks)]
        spans, texts, is_rewritten = [], [], False
        for place in conversation.trained:
            before, upto = self._write(turns[:place], tools, asks=True), self._write(turns[: place + 1], tools)
            if not upto.startswith(before):
                raise ConfigError(
                    "the chat template writes an answer otherwise than after the header that asks for one "
                    f"({before[-40:]!r} is not the beginning of it), so which characters are the answer is not known: "
                    "use another template (task.chat_template), or mark answers in it with {% generation %}"
                )
            span = (len(before), self._end_in(upto, len(before)))
            is_rewritten = is_rewritten or not whole.startswith(upto[: span[1]])
            spans.append(span)
            texts.append(upto)
        if not is_rewritten:
            return [Rendered(whole, spans, marks)]
        return [Rendered(text, [span], marks) for text, span in zip(texts, spans, strict=True)]

    def ask(self, conversation: Conversation) -> Rendered:
        """All turns and the header that asks for an answer. Raises UnusableError."""
        turns, tools, marks = self._marked(conversation)
        return Rendered(self._write(turns, tools, asks=True), [], marks)

    def encode(self, texts: list[Rendered]) -> list[Sample]:
        """Tokens of the texts, up to the end of the last answer: nothing after it can matter to a target."""
        plain = [text.text for text in texts if not text.marks]
        encoded = iter(self._encode(plain) if plain else ())
        found = []
        for text in texts:
            ids, starts, stops = next(encoded) if not text.marks else self._in_parts(text)
            spans = []
            for begin, end in text.spans:
                first = max(1, int(np.searchsorted(starts, begin, "left")))  # the first of all follows nothing
                stop = int(np.searchsorted(stops, end, "right"))
                if stop > first:
                    spans.append((first, stop))
            found.append(Sample(ids[: spans[-1][1]] if spans else ids, spans))
        return found

    @cached_property
    def special(self) -> list[str]:
        """What must not be in the text of a turn, as it would become one of the template's own tokens."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = [*(str(token) for token in added if token.special), self.end, *self._tokenizer.all_special_tokens]
        names += [marker for marker in CHATML_MARKERS if marker in self.text]  # a base model has no tokens for them
        return sorted(dict.fromkeys(names), key=len, reverse=True)

    def _write(self, turns: list[Turn], tools: list[Any] | None, *, asks: bool = False) -> str:
        from jinja2.exceptions import TemplateError

        try:
            written = self._tokenizer.apply_chat_template(
                turns, tools=tools, chat_template=self.text, tokenize=False, add_generation_prompt=asks
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise UnusableError(f"the chat template refuses it: {first_line(str(error))}") from None
        return str(written)

    def _generated(self, turns: list[Turn], tools: list[Any] | None, trained: list[int]) -> list[tuple[int, int]]:
        """The characters that the template itself marks as answers."""
        from transformers.utils.chat_template_utils import render_jinja_template

        written: Any = render_jinja_template(
            [turns],
            tools=tools,
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        text: str = written[0][0]
        spans: list[tuple[int, int]] = written[1][0]
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        if len(spans) != len(answers):
            raise ConfigError(
                f"the chat template marks {len(spans)} texts with {{% generation %}} where a conversation has "
                f"{len(answers)} assistant turns: it has to mark one for each"
            )
        by_place = dict(zip(answers, spans, strict=True))
        for place, (begin, stop) in by_place.items():
            is_left_out = text[stop:].startswith(self.end) and self.end not in text[begin:stop]
            by_place[place] = (begin, stop + len(self.end) if is_left_out else self._end_in(text[:stop], begin))
        return [by_place[place] for place in trained]

    def _end_in(self, text: str, begin: int) -> int:
        """Where an answer ends that begins in a text and is its last: behind the end of its turn, without blanks."""
        at = text.rfind(self.end, begin)
        if at >= 0 and not text[at + len(self.end) :].strip():
            return at + len(self.end)
        return len(text.rstrip())

    def _marked(self, conversation: Conversation) -> tuple[list[Turn], list[Any] | None, dict[str, str]]:
        """Turns and tools in which a character stands for each special token, and what each of these stands for."""
        texts = list(texts_in([conversation.turns, conversation.tools]))
        used = [token for token in self.special if any(token in text for text in texts)]
        if not used:
            return conversation.turns, conversation.tools, {}
        if not self._as_text:
            raise UnusableError(
                f"a text holds {used[0]!r}, a special token of the tokenizer, which would end or begin a turn; "
                "task.special_tokens=text reads it as text"
            )
        all_texts = "".join(texts)
        free = (chr(code) for code in range(_FIRST_MARK, 0x10FFFE) if chr(code) not in all_texts)
        marks = dict(zip(used, free, strict=False))  # the longest first, as one may hold another
        turns, tools = _replaced(conversation.turns, marks), _replaced(conversation.tools, marks)
        return turns, tools, {mark: token for token, mark in marks.items()}

    def _encode(self, texts: list[str], *, is_text: bool = False) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
        """(ids, first character of each token, the character after its last) of each text."""
        encoding = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=is_text,
            verbose=False,
        )
        found = []
        for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            places = np.maximum.accumulate(np.array(offsets, np.int64).reshape(-1, 2), axis=0)
            found.append((ids, places[:, 0], places[:, 1]))
        return found

    def _in_parts(self, text: Rendered) -> tuple[list[int], np.ndarray, np.ndarray]:
        """`_encode` of a text in which characters stand for special tokens that are to be read as text."""
        ids: list[int] = []
        starts, stops, at = [], [], 0
        for part in re.split(f"([{''.join(text.marks)}])", text.text):
            if part in text.marks:
                (tokens, _, _) = self._encode([text.marks[part]], is_text=True)[0]
                begins, ends = np.full(len(tokens), at), np.full(len(tokens), at + 1)
            elif part:
                tokens, begins, ends = self._encode([part])[0]
                begins, ends = begins + at, ends + at
            else:
                continue
            ids += tokens
            starts.append(begins)
            stops.append(ends)
            at += len(part)
        return ids, np.concatenate(starts), np.concatenate(stops)

    def _end_of_turn(self) -> str:
        try:
            written = self._write(PROBE, None)
        except UnusableError as error:
            raise ConfigError(f"task.chat_template: {error}") from None
        answer = written.rpartition(PROBE[1]["content"])
        if not answer[1]:
            raise ConfigError("task.chat_template: the template does not write the content of an assistant turn")
        return answer[2].strip()

    def _id_of_end(self) -> int:
        ids = self._tokenizer(self.end, add_special_tokens=False)["input_ids"] if self.end else []
        if len(ids) != 1:
            what = f"ends an answer with {self.end!r}, which is {len(ids)} tokens of the tokenizer" if self.end else ""
            raise ConfigError(
                f"task.chat_template: the template {what or 'writes nothing after an answer'}; one token has to end "
                "it, or the model would not know when to stop. Use the tokenizer that belongs to the template, or a "
                "template that ends answers with eos_token"
            )
        return int(ids[0])


def _template_of(tokenizer: Any, template: str | None) -> str:
    if template == CHATML:
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        if end is None:
            raise ConfigError("task.chat_template=chatml: this tokenizer has neither <|im_end|> nor an eos_token")
        return _CHATML.replace("END", end)
    if template is not None:
        return template
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise ConfigError(
            "task.chat_template: this tokenizer has no chat template, as that of a base model. Use a model that was "
            "trained to chat, or name one: task.chat_template=chatml, or a file with the template in Jinja"
        ) from None


def _replaced(value: Any, marks: dict[str, str]) -> Any:
    if isinstance(value, str):
        for token, mark in marks.items():
            value = value.replace(token, mark)
        return value
    if isinstance(value, dict):
        return {key: _replaced(one, marks) for key, one in value.items()}
    return [_replaced(one, marks) for one in value] if isinstance(value, list) else value
