"""The dialogs of a change of clients: the form of its bounds, and the question before it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from relayd.admin.schema import ClientInfo, KeyInfo
from relayd.printable import plural
from tui.model.clients import FIELDS, parsed, texts_of
from tui.screens.dialogs import Dialog, paragraph
from tui.widgets.choices import Choices


@dataclass(frozen=True, slots=True)
class ClientForm:
    """A form as it was sent."""

    name: str
    changes: dict[str, object]
    """The bounds that change, as the admin API takes them."""
    texts: dict[str, str]
    """What stood in every line."""


class AskClient(Dialog[ClientForm]):
    """Name, note and bounds of a client, a line for each; those of a known client are changed.

    Args:
        client: the client as it is; None for a new one.
        texts: what the lines begin with, by the name of the field.
        fault: why the form is shown again.
        name: what the name of a new client begins with.
        names: those that are taken.
        now_s: returns the time.
    """

    DEFAULT_CSS = """
    AskClient #box { width: 76; }
    AskClient .line { height: 1; }
    AskClient .line Static { width: 19; color: $dim; }
    AskClient .line Static.hint { width: 24; padding: 0 0 0 1; }
    AskClient.-narrow .line Static.hint { display: none; }
    AskClient .line Input { margin: 0; }
    AskClient #fault { margin: 0 0 1 0; }
    """
    AUTO_FOCUS = "Input"
    YES_KEY = "Enter"

    def __init__(
        self,
        client: ClientInfo | None,
        texts: dict[str, str],
        fault: str,
        *,
        name: str = "",
        names: frozenset[str] = frozenset(),
        now_s: Callable[[], float],
    ) -> None:
        title = "Add a client; its first key is shown once" if client is None else f"Bounds of {client.name}"
        super().__init__(title, yes="Make a key" if client is None else "Save")
        self._client = client
        self._before = {} if client is None else texts_of(client)
        self._texts = texts
        self._fault = fault
        self._typed_name = name
        self._names = names
        self._now_s = now_s

    def body(self) -> Iterable[Widget]:
        """Show a line for each field: what it is, what it says, and how it is written."""
        if self._client is None:
            yield _line("name", "name", self._typed_name, "web, laptop, ci", max_length=64)
        for field in FIELDS:
            yield _line(field.name, field.label, self._texts.get(field.name, ""), field.hint)
        hint = "Empty: no bound. ↑ ↓ go to another line, Enter saves."
        yield paragraph(self._fault or hint, id="fault", note=True)

    def accept(self) -> None:
        """Answer with what has changed, if it can be read."""
        try:
            self.dismiss(self._read())
        except ValueError as error:
            self.explain(str(error))

    def _read(self) -> ClientForm:
        """Return what the form says.

        Raises:
            ValueError: the sentence says what is wrong.
        """
        name = self._client.name if self._client is not None else self._value("name")
        texts = {field.name: self._value(field.name) for field in FIELDS}
        if not name:
            raise ValueError("A client needs a name.")
        if name in self._names:
            raise ValueError(f"There is a client {name} already; e changes its bounds, r its key.")
        changes = parsed(texts, self._before, self._now_s())
        if self._client is not None and not changes:
            raise ValueError("Nothing is changed yet; Esc leaves.")
        return ClientForm(name, changes, texts)

    def _value(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value.strip()


class _LineInput(Input):
    """A line of the form: `↑ ↓` go to another one, also where the form could scroll instead."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]


def _line(name: str, label: str, text: str, hint: str, max_length: int = 2000) -> Horizontal:
    return Horizontal(
        Static(label, markup=False),
        _LineInput(text, id=name, compact=True, max_length=max_length, select_on_focus=False),
        Static(hint, classes="hint", markup=False),
        classes="line",
    )


class AskRemove(Dialog[bool]):
    """Whether to remove a client, with all that ends; its name is typed. True: cut its open streams too."""

    AUTO_FOCUS = "#name"
    YES_KEY = "Enter"

    def __init__(self, client: str, keys: Sequence[KeyInfo], open_streams: int) -> None:
        super().__init__(f"Remove the client {client}?", yes="Remove", danger=True)
        self._client = client
        self._keys = keys
        self._open_streams = open_streams

    def body(self) -> Iterable[Widget]:
        """Say what ends, and ask for the name."""
        keys = ", ".join(f"{key.id} ({key.state.value})" for key in self._keys)
        ends = f"Ends now, for good: {keys}." if keys else "It has no live key."
        yield paragraph(
            f"{ends}\n{plural(self._open_streams, 'stream')} open now. What it used and its requests"
            " stay in the log. Its name can be given again."
        )
        yield Input(placeholder=f"type its name: {self._client}", id="name", compact=True)
        if self._open_streams:
            yield Choices(["cut its open streams too"], [], id="cut", many=True)

    def on_mount(self) -> None:
        """Nothing is named yet."""
        self.query_one("#yes", Button).disabled = True

    def _is_named(self) -> bool:
        return self.query_one("#name", Input).value.strip() == self._client

    @on(Input.Changed, "#name")
    def _typed(self) -> None:
        self.query_one("#yes", Button).disabled = not self._is_named()

    def accept(self) -> None:
        """Answer, once the client is named."""
        if self._is_named():
            self.dismiss(bool(self._open_streams and self.query_one("#cut", Choices).chosen))
