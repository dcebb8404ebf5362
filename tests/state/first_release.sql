-- A database that the first release wrote: a filled and rotated ring, a served, a failed and an open request.
BEGIN TRANSACTION;
CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, at TEXT NOT NULL, action TEXT NOT NULL,
        result TEXT NOT NULL, uid INTEGER NOT NULL, pid INTEGER NOT NULL, login TEXT NOT NULL,
        client TEXT, key_ids TEXT NOT NULL, generation INTEGER NOT NULL, detail TEXT
    );
INSERT INTO "audit" VALUES(1,'boot-old','2027-01-15T08:00:00.000Z','fill','done',990,4711,'relayd','default','["kmx83AoC"]',1,'the given key');
INSERT INTO "audit" VALUES(2,'boot-old','2027-01-15T08:00:01.000Z','rotate','done',1000,4242,'alice','default','["XuOGYtsG","kmx83AoC"]',2,'grace 86400 s, kmx83AoC works until 2027-01-16T08:00:01.000Z');
CREATE TABLE boots (
        boot_id TEXT PRIMARY KEY, pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL,
        host_boot TEXT NOT NULL, started_at TEXT NOT NULL, stopped_at TEXT
    );
INSERT INTO "boots" VALUES('boot-old',4711,414436,'another-boot-of-another-machine','2027-01-15T08:00:00.000Z','2027-01-15T08:00:01.000Z');
CREATE TABLE idempotency (
        key TEXT PRIMARY KEY, change TEXT NOT NULL, reply TEXT NOT NULL, created_at TEXT NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "idempotency" VALUES('once-1','rotate kmx83AoC grace 86400 s','{"generation":2,"key":{"id":"XuOGYtsG","client":"default","state":"active","fingerprint":"97dd8e03","created_at":"2027-01-15T08:00:01.000Z","expires_at":null,"revoked_at":null,"replaced_by":null,"first_used_at":null,"first_used_ip":null,"last_used_at":null,"last_used_ip":null},"old":{"id":"kmx83AoC","client":"default","state":"retiring","fingerprint":"624b6963","created_at":"2027-01-15T08:00:00.000Z","expires_at":"2027-01-16T08:00:01.000Z","revoked_at":null,"replaced_by":"XuOGYtsG","first_used_at":null,"first_used_ip":null,"last_used_at":null,"last_used_ip":null}}','2027-01-15T08:00:01.000Z');
CREATE TABLE keys (
        id TEXT PRIMARY KEY, client TEXT NOT NULL, digest BLOB NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('active', 'retiring', 'expired', 'revoked')),
        created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT, replaced_by TEXT,
        first_used_at TEXT, first_used_ip TEXT, last_used_at TEXT, last_used_ip TEXT
    );
INSERT INTO "keys" VALUES('kmx83AoC','default',X'624B69637DE76820CCBE3EAD2ED4A695C1B27809784C2F67EC0C3DC643B760EA','retiring','2027-01-15T08:00:00.000Z','2027-01-16T08:00:01.000Z',NULL,'XuOGYtsG','2027-01-15T08:00:01.000Z','192.0.2.1','2027-01-15T08:00:01.000Z','192.0.2.1');
INSERT INTO "keys" VALUES('XuOGYtsG','default',X'97DD8E034E84BC5D9545C4C50554D8DC23980B159995ADE552D3F1B7E918BB8D','active','2027-01-15T08:00:01.000Z',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE lost (
        seq INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, at TEXT NOT NULL, count INTEGER NOT NULL,
        reason TEXT NOT NULL
    );
INSERT INTO "lost" VALUES(8,'boot-old','2027-01-15T08:00:01.000Z',3,'database or disk is full');
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('floor_seq',0);
INSERT INTO "meta" VALUES('seq',8);
CREATE TABLE requests (
        start_seq INTEGER PRIMARY KEY, end_seq INTEGER,
        id TEXT NOT NULL, boot_id TEXT NOT NULL, started_at TEXT NOT NULL,
        client TEXT, key_id TEXT, ip TEXT NOT NULL, origin TEXT, user_agent TEXT, path TEXT NOT NULL,
        model TEXT, phase TEXT NOT NULL, status INTEGER, outcome TEXT,
        error_code TEXT, error_message TEXT,
        connect_ms INTEGER, first_token_ms INTEGER, duration_ms INTEGER, stalled_ms INTEGER NOT NULL,
        deltas INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        prompt_tokens INTEGER, completion_tokens INTEGER,
        finish_reason TEXT, upstream_request_id TEXT
    );
INSERT INTO "requests" VALUES(3,4,'req-000001','boot-old','2027-01-15T08:00:00.000Z','web','abcd1234','203.0.113.7','https://example.org','Mozilla/5.0 (X11; Linux x86_64)','/chat','gpt-4o-mini','done',200,'completed',NULL,NULL,12,120,800,0,20,2048,NULL,NULL,'stop',NULL);
INSERT INTO "requests" VALUES(5,6,'req-000002','boot-old','2027-01-15T08:00:00.000Z','web','abcd1234','203.0.113.7','https://example.org','Mozilla/5.0 (X11; Linux x86_64)','/chat','gpt-4o-mini','done',502,'upstream_error','upstream_failed','The provider failed.',12,120,800,0,20,2048,NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(7,NULL,'req-000003','boot-old','2027-01-15T08:00:00.000Z','web','abcd1234','203.0.113.7','https://example.org','Mozilla/5.0 (X11; Linux x86_64)','/chat','gpt-4o-mini','connecting',NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,NULL,NULL);
CREATE TABLE ring (
        only INTEGER PRIMARY KEY CHECK (only = 1), generation INTEGER NOT NULL,
        changed_at TEXT, changed_by TEXT, change TEXT
    );
INSERT INTO "ring" VALUES(1,2,'2027-01-15T08:00:01.000Z','alice','rotate');
CREATE UNIQUE INDEX requests_by_id ON requests (id);
CREATE UNIQUE INDEX requests_by_end ON requests (end_seq);
CREATE INDEX requests_by_time ON requests (started_at);
CREATE UNIQUE INDEX keys_one_active ON keys (client) WHERE state = 'active';
CREATE INDEX idempotency_by_time ON idempotency (created_at);
COMMIT;
PRAGMA user_version = 1;
