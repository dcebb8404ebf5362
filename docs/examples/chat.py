"""Ask a relay from Python, with the standard library alone: python3 chat.py "Say hi".

RELAY is its address, RELAY_KEY a key that its owner gave you. Closing the answer early stops the model too.
"""

import json
import os
import sys
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def ask(relay: str, key: str, messages: list[dict[str, str]]) -> Iterator[str]:
    """The answer, piece by piece. Raises RuntimeError with the relay's own sentence."""
    body = json.dumps({"messages": messages}).encode()
    try:
        answer = urlopen(Request(f"{relay}/chat", body, {"Authorization": f"Bearer {key}"}))
    except HTTPError as refusal:  # its body has the same lines
        answer = refusal
    with answer:
        for line in map(json.loads, answer):
            if line["error"]:
                raise RuntimeError(line["content"])
            if line["done"]:
                return
            yield line["content"]
    raise RuntimeError("the connection ended before the answer did")


if __name__ == "__main__":
    question = sys.argv[1] if len(sys.argv) > 1 else "Say hi"
    relay = os.environ.get("RELAY", "http://127.0.0.1:3666")
    key = os.environ.get("RELAY_KEY") or sys.exit("set RELAY_KEY to your key")
    try:
        for text in ask(relay, key, [{"role": "user", "content": question}]):
            print(text, end="", flush=True)
    except (OSError, RuntimeError) as error:
        sys.exit(f"\n{error}")
    print()
