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

_FIGURES_JSON = """json_object(
    'name', coalesce(name, ''), 'count', count(*), 'errors', sum(failed), 'deltas', sum(deltas),
    'first_token_p50_ms', min(CASE WHEN first_rank * 2 >= firsts THEN first_token_ms END),
    'first_token_p95_ms', min(CASE WHEN first_rank * 20 >= firsts * 19 THEN first_token_ms END),
    'duration_p50_ms', min(CASE WHEN duration_rank * 2 >= durations THEN duration_ms END),
    'duration_p95_ms', min(CASE WHEN duration_rank * 20 >= durations * 19 THEN duration_ms END))"""


def bucket(bucket_s: int) -> str:
    """The start of the bucket of so many seconds that a request started in, as UTC text."""
    start = f"CAST(strftime('%s', started_at) AS INTEGER) / {bucket_s:d} * {bucket_s:d}"
    return f"strftime('%Y-%m-%dT%H:%M:%S.000Z', {start}, 'unixepoch')"


def figures(group: str, where: str, order: str) -> str:
    """Figures of each group of requests since `?` that pass `where`, at most `?` groups."""
    return json_list(
        f"""WITH picked AS MATERIALIZED (
            SELECT {group} AS name, first_token_ms, duration_ms, deltas,
                error_code IS NOT NULL OR outcome IS 'crashed' AS failed
            FROM requests WHERE started_at >= ? AND {where}
        ), ranked AS (
            SELECT *,
                row_number() OVER (PARTITION BY name ORDER BY first_token_ms IS NULL, first_token_ms)
                    AS first_rank,
                count(first_token_ms) OVER (PARTITION BY name) AS firsts,
                row_number() OVER (PARTITION BY name ORDER BY duration_ms IS NULL, duration_ms)
                    AS duration_rank,
                count(duration_ms) OVER (PARTITION BY name) AS durations
            FROM picked
        ) SELECT {_FIGURES_JSON} AS item FROM ranked GROUP BY name ORDER BY {order} LIMIT ?"""  # noqa: S608 - as `page`
    )
