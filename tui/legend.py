"""What the signs on the screens mean, for the help."""

from __future__ import annotations

from collections.abc import Mapping

from relayd.admin.schema import KeyState, Phase
from tui.model.app_state import Connection

Entries = Mapping[str, str]
"""A word or a sign, and what it means."""

LEGEND: Mapping[str, Entries] = {
    "Legend: states in the header": {
        Connection.LIVE: "connected",
        f"{Connection.STALE} 5s": "connected, but silent for more than 3 s; figures are grey, a change waits",
        Connection.CONNECTING: "the connection was lost; it is tried again by itself",
        Connection.DOWN: "no daemon answers; what is shown comes from its database, if there is one",
        Connection.DENIED: "you may not use the socket; the line below the tabs says what to do",
        Connection.MISMATCH: "another version answers; nothing can be changed",
        "PAUSED": "no new requests are accepted; P resumes",
        "DRAINING": "no new requests are accepted; the daemon stops once its streams have ended",
    },
    "Legend: header": {
        "run 3": "open streams",
        "142 tok/s": "output tokens a second, all streams together",
        "first 0.4/1.9s": "time to the first token: half of the requests, and 95 % of them, were faster",
        "err 2/5m": "failed requests of the last five minutes",
        "1 alert": "alerts that hold now; A lists them",
        "OLD KEY 14:32": "a rotated key still works for so long; its users of the last 24 h",
        "ROUTE … COOLS": "a provider's key or address failed and is not asked for so long",
        "keys on 3 of 3": "how many processes of a shared relay have the newest keys",
        "LOG LOSES 7": "so many records could not be written",
        "—": "not known",
    },
    "Legend: badges of the tabs": {
        "2 In flight 3": "open streams",
        "4 Clients !": "a key that has ended is still sent",
    },
    "Legend: columns of Requests": {
        "st": "the HTTP status, or a state",
        "first": "time to the first token",
        "dur": "duration so far, or in all",
        "tok": "output tokens; of embeddings those of the prompt",
        "US$": "cost; — without a price for the model",
        "▲ ▼": "sorted by this column, the smallest or the largest first",
    },
    "Legend: columns of Clients and Usage": {
        "keys": "how the client's keys stand: active, old 14:32, ends 2d, no key, expired, dead in use",
        "req/d tok/d": "requests and tokens of today",
        "req/m US$/m": "the same and the cost, of the month",
        "in cache out": "tokens of prompts, those of them from the provider's cache, and of answers",
        "US$ +": "some of the cost is not known",
        "est": "requests whose tokens were estimated, not reported",
        "███░░ 61%": "what is used of a bound",
        "used": "time since the last request",
        "note": "the note; from 80 % of a bound on that bound",
    },
    "Legend: states of a request": {
        "conn wait run": "open: connecting, waiting for the first token, streaming",
        "gone": "the client left before the end",
        "stal": "the client read too slowly, and was cut off",
        "cncl": "an operator cancelled it",
        "stop": "the daemon stopped, and it was cut off",
        "lost": "the daemon crashed; how it ended is not known",
        "fail": "it broke off after the status was sent",
    },
    "Legend: bars and marks of Requests": {
        "·": "connecting to the provider",
        "░": "waiting for the first token",
        "▓": "streaming",
        "▒": "waiting for the client to read",
        "✗  ⊣  ▸": "failed, the client left, still running",
        "▶": "the cursor",
        "•": "matches the filter that is turned off",
        "┃ ┿": "scrollbar: the part in sight, and where errors or breaks are",
        "── gap": "records that are on disk, but not loaded; Enter loads them",
    },
    "Legend: phases of a stream": {
        Phase.CONNECTING: "the provider has not accepted the request yet",
        Phase.WAITING: "accepted; the first token has not come",
        Phase.STREAMING: "tokens arrive",
        "waits for": "upstream: the provider is slow; client: the reader is slow",
        "last": "time since the last piece of the answer",
    },
    "Legend: columns of Usage": {
        "/d  /m": "of today, of the month",
        "in cache out": "tokens of prompts, those of them that the provider had in its cache, of answers",
        "US$ 1.23+": "a part of the cost is not known: a model has no price; — if all of it is",
        "share": "part of the whole cost; of the tokens, if nothing has a cost",
        "est": "requests whose tokens are an estimate",
        "bound": "the bound of the client of which the most is used",
    },
    "Legend: keys": {
        KeyState.ACTIVE: "the client's key",
        KeyState.RETIRING: "replaced; works until its grace ends",
        KeyState.EXPIRED: "its grace, or its own end, is over",
        KeyState.REVOKED: "ended by an operator",
        "dead in use": "a key that has ended is still sent",
    },
    "Legend: footer": {"x(cancel)": "can't be done now; press the key to learn why"},
}
