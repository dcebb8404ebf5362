"""The SQL that reads the log. Each query gives one row with JSON in it.

A row at a time would give up the GIL and ask for it again at each one, which is slow beside a busy
event loop; the JSON decodes straight into the typed records.
"""

from __future__ import annotations

from relayd.state.rows import RECORD_JSON

_STARTED_JSON = (
    "json_object('event', 'started', 'seq', start_seq, 'boot_id', boot_id, 'record', json_object("
    "'seq', start_seq, 'id', id, 'boot_id', boot_id, 'started_at', started_at, 'client', client,"
    " 'key_id', key_id, 'ip', ip, 'origin', origin, 'user_agent', user_agent, 'path', path, 'model', model))"
)
_ENDED_JSON = f"json_object('event', 'ended', 'seq', end_seq, 'boot_id', boot_id, 'record', {RECORD_JSON})"
_ENTRY_JSON = (
    "json_object('seq', seq, 'boot_id', boot_id, 'at', at, 'action', action, 'result', result, 'uid', uid,"
    " 'pid', pid, 'login', login, 'client', client, 'key_ids', json(key_ids), 'generation', generation,"
    " 'detail', detail)"
)
_AUDITED_JSON = f"json_object('event', 'audit', 'seq', seq, 'boot_id', boot_id, 'entry', {_ENTRY_JSON})"
_LOST_JSON = (
    "json_object('event', 'lost', 'seq', seq, 'boot_id', boot_id, 'at', at, 'count', count, 'reason', reason)"
)


def json_list(inner: str) -> str:
    """A query for the column `item` of `inner`, all of it as one JSON array."""
    return f"SELECT '[' || coalesce(group_concat(item, ','), '') || ']' FROM ({inner})"  # noqa: S608 - own SQL


def page(where: str) -> str:
    """Records with `? < seq < ?` that pass `where`, newest first, at most `?`."""
    return json_list(
        f"SELECT {RECORD_JSON} AS item FROM requests WHERE start_seq > ? AND start_seq < ? AND {where}"  # noqa: S608 - `where` binds its values
        " ORDER BY start_seq DESC LIMIT ?"
    )


ONE = f"SELECT {RECORD_JSON} FROM requests WHERE id = ?"  # noqa: S608 - own columns

AUDIT = json_list(
    f"SELECT {_ENTRY_JSON} AS item FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?"  # noqa: S608 - own columns
)

FLOOR = "(SELECT value FROM meta WHERE name = 'floor_seq')"
NEWEST = "(SELECT value FROM meta WHERE name = 'seq')"


def _source(table: str, seq: str, item: str) -> str:
    return (
        f"SELECT * FROM (SELECT {seq} AS place, {item} AS item FROM {table}"  # noqa: S608 - own columns
        f" WHERE {seq} > max(:after, {FLOOR}) ORDER BY {seq} LIMIT :limit)"
    )


EVENTS = f"SELECT {FLOOR}, ({{}})".format(
    json_list(
        " UNION ALL ".join(
            (
                _source("requests", "start_seq", _STARTED_JSON),
                _source("requests", "end_seq", _ENDED_JSON),
                _source("audit", "seq", _AUDITED_JSON),
                _source("lost", "seq", _LOST_JSON),
            )
        )
        + " ORDER BY place LIMIT :limit"
    )
)
"""The floor, and what follows `:after` or the floor; one statement, so that both are of one moment."""

COUNT_SINCE = "SELECT count(*) FROM requests WHERE started_at >= ?"


def counts(bucket_s: int, where: str) -> str:
    """Counts since `?` of what passes `where`, by bucket, model and client."""
    return json_list(
        f"SELECT json_array({_bucket(bucket_s)}, coalesce(model, ''), coalesce(client, ''), count(*),"  # noqa: S608 - as `page`
        " sum(error_code IS NOT NULL OR outcome IS 'crashed'), sum(deltas)) AS item"
        f" FROM requests WHERE started_at >= ? AND {where} GROUP BY {_bucket(bucket_s)}, model, client"
    )


def samples(group: str, bucket_s: int, column: str, where: str) -> str:
    """The values of a column since `?` that pass `where`, in order, by `bucket`, `model` or `client`.

    Only one request in `?` counts, picked by a fixed hash of its place.
    """
    name = f"CAST({_bucket(bucket_s)} AS TEXT)" if group == "bucket" else f"coalesce({group}, '')"
    return json_list(
        "SELECT '[' || json_quote(name) || ',[' || group_concat(value, ',') || ']]' AS item"  # noqa: S608 - as `page`
        f" FROM (SELECT {name} AS name, {column} AS value FROM requests WHERE started_at >= ? AND {where}"
        f" AND {column} IS NOT NULL AND (start_seq % 1000003 * 2654435761 >> 16) % ? = 0 ORDER BY 1, 2)"
        " GROUP BY name"
    )


def _bucket(bucket_s: int) -> str:
    """How many buckets of so many seconds fit between 1970 and the start of a request."""
    return f"CAST(strftime('%s', started_at) AS INTEGER) / {bucket_s:d}"
