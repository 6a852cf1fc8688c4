-- Uploads, and the files that became of them. size is null while nobody has told it, chunk_bytes for a stream. reserved is
-- what the row takes of its tenant's quota. running is the state of the hash of the file, and hashed how far it goes.
-- Texts that others make up are kept as bytes. told says whether somebody heard that the upload is done.
CREATE TABLE uploads (
    id           BLOB NOT NULL PRIMARY KEY,
    tenant_no    INTEGER NOT NULL,
    owner        TEXT NOT NULL,
    state        TEXT NOT NULL,
    size         BIGINT,
    chunk_bytes  BIGINT,
    received     BIGINT NOT NULL,
    reserved     BIGINT NOT NULL,
    opened_at    BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    changed_at   BIGINT NOT NULL,
    file_name    TEXT NOT NULL,
    content_type TEXT NOT NULL,
    metadata     BLOB,
    announced    BLOB,
    digest       BLOB,
    running      BLOB,
    hashed       BIGINT NOT NULL DEFAULT 0,
    staged       TEXT,
    record_kind  TEXT,
    record_id    TEXT,
    joining      TEXT NOT NULL,
    fault        BLOB,
    told         INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX uploads_live ON uploads (tenant_no, owner) WHERE state IN ('open', 'finalizing');
CREATE INDEX uploads_overdue ON uploads (expires_at, id) WHERE state = 'open';
CREATE INDEX uploads_unfinished ON uploads (changed_at, id)
    WHERE state = 'finalizing' OR (state = 'open' AND chunk_bytes IS NULL AND received = size AND joining <> 'part');
CREATE INDEX uploads_untold ON uploads (changed_at, id) WHERE state = 'done' AND told = 0 AND joining <> 'part';
CREATE INDEX uploads_over ON uploads (changed_at, id) WHERE state IN ('cancelled', 'expired');

-- The chunks that were received of uploads that are under way. tag is what the place of the bytes calls one.
CREATE TABLE upload_chunks (
    upload   BLOB NOT NULL,
    chunk_no BIGINT NOT NULL,
    digest   BLOB NOT NULL,
    tag      TEXT,
    PRIMARY KEY (upload, chunk_no)
) WITHOUT ROWID;

-- What the uploads and files of a tenant take: the sum of what their rows reserve.
CREATE TABLE upload_usage (
    tenant_no INTEGER NOT NULL PRIMARY KEY,
    bytes     BIGINT NOT NULL
);
