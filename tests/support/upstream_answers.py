"""A scripted model's answers as OpenAI's API gives them: chat completions, completions and responses.

Streamed or whole, in the formats of OpenAI's API reference. A model whose request has tools calls the first
of them (or the chosen one) until it gets a result; where a JSON schema is asked for, a value of it is the
answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

from tests.support.upstream_script import End, Request, Script, Step, as_json, broken_off

_PIECE = re.compile(r".{1,9}", re.DOTALL)
_SAMPLES: Final[Mapping[str, Any]] = {"string": "Paris", "integer": 3, "number": 1.5, "boolean": True}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says: text, or the call of a tool with its arguments as JSON."""

    pieces: list[str]
    """The text or the arguments, delta by delta."""
    tool: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


def text_of(content: object) -> str:
    """Return a message's text; a part that is no text is named by its kind and its size."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    said = []
    for part in content:
        kind, value = part["type"], part.get(part["type"])
        if kind in {"text", "input_text", "output_text"}:
            said.append(part["text"])
        elif kind in {"image_url", "input_image"}:
            url = part["image_url"]
            said.append(f"[image of {len(url['url'] if isinstance(url, dict) else url)} characters]")
        else:
            said.append(f"[{kind} of {len(json.dumps(value))} bytes]")
    return " ".join(said)


def sample(schema: Mapping[str, Any]) -> Any:
    """Return a value of a JSON schema, as structured output and a tool's arguments need one."""
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        return sample(choice)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: sample(inner) for name, inner in schema.get("properties", {}).items()}
    return [sample(schema.get("items", {}))] if kind == "array" else _SAMPLES.get(kind)


class AnswerStream:
    """The events of a streamed answer, with what one protocol makes of them in a subclass."""

    def __init__(self, request: Request, script: Script, asked: dict[str, Any]) -> None:
        self.n = request.n
        self.script = script
        self.asked = asked
        self.answer = self.decide()
        self.model: str = asked["model"]
        self._eol = b"\r\n" if "crlf" in script.fault else b"\n"
        self._ids = 0
        total = len(self.answer.pieces)
        self.total = total if script.deltas is None or self.answer.tool else script.deltas

    def decide(self) -> Answer:
        """Choose the answer."""
        return Answer(self.script.pieces(text_of(self.asked.get("prompt"))))

    def start(self) -> bytes:
        """Return the events before the first delta."""
        return b""

    def delta(self, piece: str) -> bytes:
        """Return the events of a delta."""
        raise NotImplementedError

    def end(self) -> bytes:
        """Return the events after the last delta."""
        raise NotImplementedError

    def failure(self, message: str) -> bytes:
        """Return the event of a failure in the middle."""
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        return self.event({"error": error})

    def events(self) -> Iterator[Step]:
        """Give events, pauses, and how the stream breaks off."""
        script, fault = self.script, self.script.fault
        if "stall_first" in fault:
            while "comments" in fault:
                yield script.interval_ms / 1000
                yield self._comment
            yield End.SILENCE
        yield self.start()
        yield script.first_ms / 1000
        for k, piece in enumerate(islice(cycle(self.answer.pieces), self.total)):
            if k:
                yield script.interval_ms / 1000
            if k == script.after and (yield from self._break()):
                return
            yield self.delta(piece)
        if self.total <= script.after and (yield from self._break()):
            return
        yield self.end()

    def _break(self) -> Generator[Step, None, bool]:
        """Go wrong in the middle; returns whether the stream is over."""
        script, fault = self.script, self.script.fault
        yield from broken_off(script)
        if "error_event" in fault:
            yield self.failure(script.message or "The server had an error.")
        if "bad_json" in fault:
            yield self.raw_event(b'{"choices":[{"index":0,"delta":{"content":"cut in half')
        if "bad_utf8" in fault:
            yield self.delta("café").replace("é".encode(), b"\xe9 \xff")
        if "huge_event" in fault:
            yield self.delta("x" * (script.size or 4 << 20))
        return bool(fault & {"error_event", "end_early"})

    def event(self, data: dict[str, Any]) -> bytes:
        """Return one server-sent event; it has a name if its data has a type."""
        if "obfuscation" in self.script.fault:
            data = {**data, "obfuscation": "x" * (len(str(data)) % 16)}
        name = b"event: " + data["type"].encode() + self._eol if "type" in data else b""
        return self.raw_event(as_json(data), name)

    def raw_event(self, data: bytes, name: bytes = b"") -> bytes:
        """Return an event with this data."""
        before = self._comment if "comments" in self.script.fault else b""
        if "ids" in self.script.fault:
            self._ids += 1
            before += b"id: %d%b" % (self._ids, self._eol)
        return before + name + b"data: " + data + self._eol * 2

    @property
    def _comment(self) -> bytes:
        return b": PROCESSING" + self._eol * 2

    @property
    def completion_tokens(self) -> int:
        """How many tokens the answer has cost."""
        said = self.script.completion_tokens
        return self.total if said is None else said

    @property
    def whole_text(self) -> str:
        """The answer, all deltas joined."""
        return "".join(islice(cycle(self.answer.pieces), self.total))


class ChatStream(AnswerStream):
    """`POST /v1/chat/completions`."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def __init__(self, request: Request, script: Script, asked: dict[str, Any]) -> None:
        super().__init__(request, script, asked)
        self.choices: int = asked.get("n") or 1
        options = asked.get("stream_options") or {}
        self._wants_usage = script.usage == "always" or (
            script.usage == "asked" and options.get("include_usage")
        )
        self._deltas: dict[str, bytes] = {}

    def decide(self) -> Answer:
        """Choose by the messages."""
        questions = [message for message in self.asked["messages"] if message["role"] == "user"]
        chosen = self.asked.get("tool_choice")
        tools = [tool["function"] for tool in self.asked.get("tools") or () if tool["type"] == "function"]
        if isinstance(chosen, dict):
            tools = [tool for tool in tools if tool["name"] == chosen["function"]["name"]]
        if tools and chosen != "none" and self.asked["messages"][-1]["role"] != "tool":
            return _call(tools[0])
        output = self.asked.get("response_format") or {}
        if output.get("type") == "json_schema":
            return Answer(_PIECE.findall(json.dumps(sample(output["json_schema"]["schema"]))))
        return Answer(self.script.pieces(text_of(questions[-1]["content"]) if questions else ""))

    @property
    def _frame(self) -> dict[str, Any]:
        return {"id": f"{self.prefix}-test{self.n}", "object": self.kind, "created": 0, "model": self.model}

    @property
    def _finish(self) -> str:
        return "tool_calls" if self.answer.tool else self.script.finish

    def start(self) -> bytes:
        """Return the role, and the name of a tool that is called."""
        delta: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if self.answer.tool:
            call = {"name": self.answer.tool, "arguments": ""}
            calls = [{"index": 0, "id": f"call_test{self.n}", "type": "function", "function": call}]
            delta |= {"content": None, "tool_calls": calls}
        return self._chunks(delta)

    def delta(self, piece: str) -> bytes:
        """Return one chunk a choice."""
        if "obfuscation" in self.script.fault or "ids" in self.script.fault:
            self._deltas.clear()
        if piece not in self._deltas:
            call = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            self._deltas[piece] = self._chunks(call if self.answer.tool else {"content": piece})
        return self._deltas[piece]

    def end(self) -> bytes:
        """Return the finish, the usage if it was asked for, and `[DONE]`."""
        end = b"" if self.script.finish == "none" else self._chunks({}, self._finish)
        if self._wants_usage:
            end += self.event({**self._chunk_frame, "choices": [], "usage": self.usage})
        return end + self.raw_event(b"[DONE]")

    @property
    def usage(self) -> dict[str, Any]:
        """What the answer has cost."""
        prompt, completion = self.script.prompt_tokens, self.completion_tokens * self.choices
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.script.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": self.whole_text, "refusal": None}
        if self.answer.tool:
            call = {"name": self.answer.tool, "arguments": self.answer.text}
            calls = [{"id": f"call_test{self.n}", "type": "function", "function": call}]
            message |= {"content": None, "tool_calls": calls}
        finish = {"finish_reason": None if self._finish == "none" else self._finish, "logprobs": None}
        choices = [{"index": index, "message": message, **finish} for index in range(self.choices)]
        usage = {} if self.script.usage == "never" else {"usage": self.usage}
        return {**self._frame, "choices": choices, **usage, "service_tier": "default"}

    @property
    def _chunk_frame(self) -> dict[str, Any]:
        return {**self._frame, "object": f"{self.kind}.chunk"}

    def _chunks(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return b"".join(self._choice(index, delta, finish) for index in range(self.choices))

    def _choice(self, index: int, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self._wants_usage else {}
        return self.event({**self._chunk_frame, "choices": [choice], **usage})


class CompletionStream(ChatStream):
    """`POST /v1/completions`."""

    kind = "text_completion"
    prefix = "cmpl"

    def decide(self) -> Answer:
        """Choose by the prompt."""
        return Answer(self.script.pieces(str(self.asked["prompt"])))

    def start(self) -> bytes:
        """Return nothing: there is no role."""
        return b""

    @property
    def _chunk_frame(self) -> dict[str, Any]:
        return self._frame

    def _choice(self, index: int, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {
            "index": index,
            "text": delta.get("content", ""),
            "logprobs": None,
            "finish_reason": finish,
        }
        return self.event({**self._frame, "choices": [choice]})

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        choice = {"text": self.whole_text, "logprobs": None, "finish_reason": self._finish}
        choices = [{"index": index, **choice} for index in range(self.choices)]
        return {**self._frame, "choices": choices, "usage": self.usage}


class ResponseStream(AnswerStream):
    """`POST /v1/responses`."""

    def __init__(self, request: Request, script: Script, asked: dict[str, Any]) -> None:
        super().__init__(request, script, asked)
        self._sequence_number = -1
        self.id = f"resp_test{self.n}"
        self._item_id = f"{'fc' if self.answer.tool else 'msg'}_test{self.n}"

    def decide(self) -> Answer:
        """Choose by the input."""
        given = self.asked.get("input") or ""
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        tools = [tool for tool in self.asked.get("tools") or () if tool["type"] == "function"]
        chosen = self.asked.get("tool_choice")
        if isinstance(chosen, dict):
            tools = [tool for tool in tools if tool["name"] == chosen.get("name")]
        if tools and chosen != "none" and items[-1].get("type") != "function_call_output":
            return _call(tools[0])
        output = (self.asked.get("text") or {}).get("format") or {}
        if output.get("type") == "json_schema":
            return Answer(_PIECE.findall(json.dumps(sample(output["schema"]))))
        questions = [text_of(item["content"]) for item in items if item.get("role") == "user"]
        return Answer(self.script.pieces(questions[-1] if questions else ""))

    def start(self) -> bytes:
        """Return the response and its item, still empty."""
        begun = {"response": self.response("in_progress")}
        added = {"output_index": 0, "item": self._item("in_progress", "")}
        events = self._event("created", **begun) + self._event("in_progress", **begun)
        events += self._event("output_item.added", **added)
        if not self.answer.tool:
            events += self._event("content_part.added", **self._at, content_index=0, part=self._part(""))
        return events

    def delta(self, piece: str) -> bytes:
        """Return the delta of a text or of a tool's arguments."""
        if self.answer.tool:
            return self._event("function_call_arguments.delta", **self._at, delta=piece)
        return self._event("output_text.delta", **self._at, content_index=0, delta=piece, logprobs=[])

    def end(self) -> bytes:
        """Return the item as a whole, and the response's end."""
        text = self.whole_text
        if self.answer.tool:
            done = {"name": self.answer.tool, "arguments": text}
            events = self._event("function_call_arguments.done", **self._at, **done)
        else:
            at = {**self._at, "content_index": 0}
            events = self._event("output_text.done", **at, text=text, logprobs=[])
            events += self._event("content_part.done", **at, part=self._part(text))
        events += self._event("output_item.done", output_index=0, item=self._item("completed", text))
        if self.script.finish == "none":
            return events
        return events + self._event(self.status, response=self.response(self.status))

    def failure(self, message: str) -> bytes:
        """Return the `error` event."""
        self._sequence_number += 1
        said = {"code": "server_error", "message": message, "param": None}
        return self.event({"type": "error", **said, "sequence_number": self._sequence_number})

    @property
    def status(self) -> str:
        """How the response ends."""
        ends = {"length": "incomplete", "failed": "failed", "incomplete": "incomplete"}
        return ends.get(self.script.finish, "completed")

    def response(self, status: str) -> dict[str, Any]:
        """Return the response object."""
        over = status not in {"in_progress", "queued"}
        text = self.whole_text
        failed = {"code": "server_error", "message": self.script.message or "The server had an error."}
        return {
            "id": self.id,
            "object": "response",
            "created_at": 0,
            "status": status,
            "background": bool(self.asked.get("background")),
            "error": failed if status == "failed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.asked.get("instructions"),
            "max_output_tokens": self.asked.get("max_output_tokens"),
            "model": self.model,
            "output": [self._item("completed", text)] if over and status != "failed" else [],
            "parallel_tool_calls": True,
            "previous_response_id": self.asked.get("previous_response_id"),
            "reasoning": {"effort": None, "summary": None},
            "store": self.asked.get("store", True),
            "temperature": 1.0,
            "text": self.asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": self.asked.get("tool_choice") or "auto",
            "tools": self.asked.get("tools") or [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": self.usage if over else None,
            "user": None,
            "metadata": self.asked.get("metadata") or {},
        }

    @property
    def usage(self) -> dict[str, Any]:
        """What the answer has cost."""
        prompt, completion = self.script.prompt_tokens, self.completion_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.script.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0}

    def _item(self, status: str, text: str) -> dict[str, Any]:
        if self.answer.tool:
            call = {"name": self.answer.tool, "arguments": text, "call_id": f"call_test{self.n}"}
            return {"id": self._item_id, "type": "function_call", "status": status, **call}
        content = [self._part(text)] if status == "completed" else []
        said = {"role": "assistant", "content": content}
        return {"id": self._item_id, "type": "message", "status": status, **said}

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence_number += 1
        return self.event({"type": f"response.{kind}", "sequence_number": self._sequence_number, **fields})


def _call(tool: dict[str, Any]) -> Answer:
    """Call a function, as a chat completion or a response declares one."""
    arguments = json.dumps(sample(tool.get("parameters") or {}))
    return Answer(_PIECE.findall(arguments), tool["name"])
