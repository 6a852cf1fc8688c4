-- What fields that merge remember beside value and mark, and what decides beside the clocks whether a record is
-- deleted; null where neither says anything. entered is the version with which the record came into its scope.
ALTER TABLE records ADD COLUMN states BLOB;
ALTER TABLE records ADD COLUMN entered BIGINT NOT NULL DEFAULT 0;

-- The number of the last change before the epoch began.
ALTER TABLE stream_head ADD COLUMN epoch_seq BIGINT NOT NULL DEFAULT 0;

-- The rarer half of a remembered answer, JSON: the winners and the conflict that waits.
ALTER TABLE op_results ADD COLUMN more TEXT;

-- The table before had no rows: nothing wrote it. base, client, client_ns and server are canonical objects, fields is a JSON
-- array of names.
DROP TABLE conflicts;
CREATE TABLE conflicts (
    tenant_no      INTEGER NOT NULL,
    conflict_id    TEXT NOT NULL,
    kind_no        INTEGER NOT NULL,
    id             TEXT NOT NULL,
    scope_no       INTEGER NOT NULL,
    device_no      INTEGER NOT NULL,
    op_id          BLOB,
    n              BIGINT NOT NULL,
    op             TEXT NOT NULL,
    reason         TEXT NOT NULL,
    status         TEXT NOT NULL,
    fields         TEXT NOT NULL,
    base_version   BIGINT NOT NULL,
    version        BIGINT NOT NULL,
    base           TEXT NOT NULL,
    client         TEXT NOT NULL,
    client_ns      TEXT NOT NULL,
    server         TEXT NOT NULL,
    policy_version BIGINT NOT NULL,
    opened_at      BIGINT NOT NULL,
    resolved_at    BIGINT,
    resolved_by    TEXT,
    resolution     TEXT,
    seq            BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, conflict_id)
);
CREATE INDEX conflicts_record ON conflicts (tenant_no, kind_no, id) WHERE status = 'open';
CREATE INDEX conflicts_opened ON conflicts (tenant_no, opened_at, conflict_id);
CREATE INDEX conflicts_waiting ON conflicts (tenant_no, opened_at, conflict_id) WHERE status = 'open';

-- Per scope and kind, how many live rows there are and the wrapping sum of their hashes.
CREATE TABLE scope_sums (
    tenant_no INTEGER NOT NULL,
    scope_no  INTEGER NOT NULL,
    kind_no   INTEGER NOT NULL,
    count     BIGINT NOT NULL,
    sum       BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, scope_no, kind_no)
) WITHOUT ROWID;

-- A tenant's decisions in their order: the index holds the key of the row behind the tenant.
CREATE INDEX audit_tenant ON audit (tenant_no);
