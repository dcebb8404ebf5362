"""`POST /chat`: read the body of an admitted request, relay the answer as lines."""

from __future__ import annotations

from http import HTTPStatus

from relayd.public.admission import AdmittingHandler
from relayd.public.allowances import Wanted
from relayd.public.chat_request import parse_chat_request
from relayd.relay.chat_answer import ChatAnswer, ChatUpstream
from relayd.relay.errors import RelayError
from relayd.relay.estimates import guess_prompt_tokens
from relayd.relay.ndjson import DONE_LINE, error_line
from relayd.relay.probe import is_probe

_NDJSON = "application/x-ndjson; charset=utf-8"


class ChatHandler(AdmittingHandler):
    """One chat completion, a line a delta."""

    async def post(self) -> None:
        """Relay, now that the body is here."""
        await self.relay_body()

    def ask(self, body: bytes) -> tuple[ChatAnswer, Wanted | None]:
        """Return the answer to a request, and what it may use. Raises RelayError."""
        context, record = self.context, self.record
        request = parse_chat_request(body, context.chat_rules)
        upstream: ChatUpstream = context.upstream
        wanted = None
        if is_probe(request.model):
            upstream = context.probe.answer(request.model, record.ip)
        else:
            wanted = Wanted(
                prompt_guess=guess_prompt_tokens(request.upstream_body),
                output_limit=request.max_tokens,
                output_limit_name=request.max_tokens_name,
            )
            context.allowances.check(self.client, request.model, wanted)
        record.model = request.model
        answer = ChatAnswer(
            upstream, request.upstream_body, request.model, include_usage=request.include_usage
        )
        return answer, wanted

    def send(self, data: bytes) -> None:
        """Send lines, the first time with the head. Raises ClientGone."""
        if self.status is None:
            self.status = int(HTTPStatus.OK)
            self.set_header("Content-Type", _NDJSON)
            self.pad_head()
        self.send_now(data)

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Send the last lines and end the response; an error before the first byte sets the status."""
        if self.status is not None:
            self.send_now(data)
            await self.drain()
            self.finish()
        elif error is not None:
            self.status = error.status
            self.render_error(error, data)
            self.finish()
        else:
            self.status = int(HTTPStatus.OK)
            self.set_header("Content-Type", _NDJSON)
            self.set_header("Content-Length", str(len(data)))
            self.pad_head()
            self.finish(data)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return an error as the two lines that every client of /chat reads."""
        return _NDJSON, error_line(error) + DONE_LINE
