-- Numbers inside, text only here at the edge: every other table names tenants, kinds, scopes, topics and
-- devices by number. All times are Unix milliseconds. Identifiers compare by their bytes (BINARY).

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE tenants (
    tenant_no  INTEGER NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

-- One row per tenant: two counters (record changes and events), never one number.
CREATE TABLE stream_head (
    tenant_no      INTEGER NOT NULL PRIMARY KEY REFERENCES tenants,
    epoch          TEXT NOT NULL,
    seq            BIGINT NOT NULL DEFAULT 0,
    event_id       BIGINT NOT NULL DEFAULT 0,
    hlc            BIGINT NOT NULL DEFAULT 0,
    scopes_version BIGINT NOT NULL DEFAULT 0,
    gc_floor       BIGINT NOT NULL DEFAULT 0,
    events_floor   BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE kinds (
    kind_no   INTEGER NOT NULL PRIMARY KEY,
    tenant_no INTEGER NOT NULL REFERENCES tenants,
    kind      TEXT NOT NULL,
    UNIQUE (tenant_no, kind)
);

CREATE TABLE scopes (
    scope_no  INTEGER NOT NULL PRIMARY KEY,
    tenant_no INTEGER NOT NULL REFERENCES tenants,
    scope     TEXT NOT NULL,
    UNIQUE (tenant_no, scope)
);

CREATE TABLE topics (
    topic_no  INTEGER NOT NULL PRIMARY KEY,
    tenant_no INTEGER NOT NULL REFERENCES tenants,
    topic     TEXT NOT NULL,
    UNIQUE (tenant_no, topic)
);

CREATE TABLE devices (
    device_no    INTEGER NOT NULL PRIMARY KEY,
    tenant_no    INTEGER NOT NULL REFERENCES tenants,
    sub          TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    last_n       BIGINT NOT NULL DEFAULT 0,
    acked_n      BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    retired_at   BIGINT,
    UNIQUE (tenant_no, sub, device_id)
);

-- A table with rowids: new records go to its end, so that a batch of them dirties few pages. A tombstone keeps
-- fields and marks. live is null when it equals default_mark; del starts with 1 while the record is deleted.
CREATE TABLE records (
    tenant_no      INTEGER NOT NULL,
    kind_no        INTEGER NOT NULL,
    id             TEXT NOT NULL,
    seq            BIGINT NOT NULL,
    scope_no       INTEGER NOT NULL,
    owner          TEXT NOT NULL,
    fields         TEXT NOT NULL,
    default_mark   BLOB NOT NULL,
    marks          BLOB,
    del            BLOB,
    live           BLOB,
    schema_version INTEGER NOT NULL DEFAULT 0,
    changed_at     BIGINT NOT NULL
);
CREATE UNIQUE INDEX records_key ON records (tenant_no, kind_no, id);
CREATE INDEX records_seq ON records (tenant_no, scope_no, seq);

CREATE TABLE scope_exits (
    tenant_no INTEGER NOT NULL,
    scope_no  INTEGER NOT NULL,
    seq       BIGINT NOT NULL,
    kind_no   INTEGER NOT NULL,
    id        TEXT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, scope_no, kind_no, id)
) WITHOUT ROWID;
CREATE INDEX scope_exits_seq ON scope_exits (tenant_no, scope_no, seq);

-- The first answer to every change that a device may still send again.
CREATE TABLE op_results (
    device_no INTEGER NOT NULL,
    n         BIGINT NOT NULL,
    tenant_no INTEGER NOT NULL,
    op_id     BLOB,
    hash      BIGINT NOT NULL,
    code      INTEGER NOT NULL,
    seq       BIGINT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (device_no, n)
) WITHOUT ROWID;
CREATE UNIQUE INDEX op_results_op ON op_results (device_no, op_id) WHERE op_id IS NOT NULL;

-- Batches that were answered, per sync session.
CREATE TABLE sync_batches (
    tenant_no INTEGER NOT NULL,
    device_no INTEGER NOT NULL,
    sync_id   TEXT NOT NULL,
    batch_seq BIGINT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, device_no, sync_id, batch_seq)
) WITHOUT ROWID;

CREATE TABLE audit (
    audit_id       INTEGER NOT NULL PRIMARY KEY,
    tenant_no      INTEGER NOT NULL,
    at             BIGINT NOT NULL,
    kind_no        INTEGER NOT NULL,
    id             TEXT NOT NULL,
    seq            BIGINT NOT NULL,
    device_no      INTEGER NOT NULL,
    sub            TEXT NOT NULL,
    op_id          BLOB,
    n              BIGINT NOT NULL,
    code           INTEGER NOT NULL,
    strategy       TEXT NOT NULL,
    policy_version BIGINT NOT NULL,
    correlation_id TEXT NOT NULL,
    detail         TEXT NOT NULL
);
CREATE INDEX audit_record ON audit (tenant_no, kind_no, id, audit_id);

CREATE TABLE conflicts (
    conflict_id    INTEGER NOT NULL PRIMARY KEY,
    tenant_no      INTEGER NOT NULL,
    kind_no        INTEGER NOT NULL,
    id             TEXT NOT NULL,
    device_no      INTEGER NOT NULL,
    op_id          BLOB,
    n              BIGINT NOT NULL,
    reason         TEXT NOT NULL,
    status         TEXT NOT NULL,
    base_version   BIGINT NOT NULL,
    version        BIGINT NOT NULL,
    base           TEXT NOT NULL,
    client         TEXT NOT NULL,
    server         TEXT NOT NULL,
    policy_version BIGINT NOT NULL,
    opened_at      BIGINT NOT NULL,
    resolved_at    BIGINT,
    resolved_by    TEXT,
    resolution     TEXT,
    seq            BIGINT NOT NULL
);
CREATE INDEX conflicts_open ON conflicts (tenant_no, status, conflict_id);
CREATE INDEX conflicts_record ON conflicts (tenant_no, kind_no, id);

-- A removed policy leaves its row without a document, so that versions never repeat.
CREATE TABLE policies (
    tenant_no  INTEGER NOT NULL,
    kind_no    INTEGER NOT NULL,
    doc        TEXT,
    version    BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, kind_no)
) WITHOUT ROWID;

CREATE TABLE events (
    tenant_no  INTEGER NOT NULL,
    event_id   BIGINT NOT NULL,
    topic_no   INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    origin     INTEGER,
    dedupe_key TEXT,
    data       TEXT NOT NULL,
    at         BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, event_id)
) WITHOUT ROWID;
CREATE INDEX events_topic ON events (tenant_no, topic_no, event_id);

-- Tombstones in the order of their last change, for the retention job.
CREATE INDEX records_deleted ON records (tenant_no, seq) WHERE substr(del, 1, 1) = x'01';
