-- Uploads, and the files that became of them. size is null while nobody has told it, chunk_bytes for a stream. reserved is
-- what the row takes of its tenant's quota. running is the state of the hash of the file, and hashed how far it goes.
-- Texts that others make up are kept as bytes: they may hold what no text of the database does. told says whether somebody
-- heard that the upload is done.
CREATE TABLE uploads (
    id           BYTEA NOT NULL PRIMARY KEY,
    tenant_no    INTEGER NOT NULL,
    owner        TEXT COLLATE "C" NOT NULL,
    state        TEXT COLLATE "C" NOT NULL,
    size         BIGINT,
    chunk_bytes  BIGINT,
    received     BIGINT NOT NULL,
    reserved     BIGINT NOT NULL,
    opened_at    BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    changed_at   BIGINT NOT NULL,
    file_name    TEXT COLLATE "C" NOT NULL,
    content_type TEXT COLLATE "C" NOT NULL,
    metadata     BYTEA,
    announced    BYTEA,
    digest       BYTEA,
    running      BYTEA,
    hashed       BIGINT NOT NULL DEFAULT 0,
    staged       TEXT COLLATE "C",
    record_kind  TEXT COLLATE "C",
    record_id    TEXT COLLATE "C",
    joining      TEXT COLLATE "C" NOT NULL,
    fault        BYTEA,
    told         BOOLEAN NOT NULL DEFAULT false
) WITH (fillfactor = 70);
CREATE INDEX uploads_live ON uploads (tenant_no, owner) WHERE state IN ('open', 'finalizing');
CREATE INDEX uploads_overdue ON uploads (expires_at, id) WHERE state = 'open';
CREATE INDEX uploads_unfinished ON uploads (changed_at, id)
    WHERE state = 'finalizing' OR (state = 'open' AND chunk_bytes IS NULL AND received = size AND joining <> 'part');
CREATE INDEX uploads_untold ON uploads (changed_at, id) WHERE state = 'done' AND NOT told AND joining <> 'part';
CREATE INDEX uploads_over ON uploads (changed_at, id) WHERE state IN ('cancelled', 'expired');

-- The chunks that were received of uploads that are under way. tag is what the place of the bytes calls one. Who writes
-- a chunk, or takes one away, locks its upload first.
CREATE TABLE upload_chunks (
    upload   BYTEA NOT NULL,
    chunk_no BIGINT NOT NULL,
    digest   BYTEA NOT NULL,
    tag      TEXT COLLATE "C",
    PRIMARY KEY (upload, chunk_no)
);

-- What the uploads and files of a tenant take: the sum of what their rows reserve. It is locked behind the upload; opening
-- one locks it alone.
CREATE TABLE upload_usage (
    tenant_no INTEGER PRIMARY KEY,
    bytes     BIGINT NOT NULL
) WITH (fillfactor = 20);

-- Who may write where: slot is a chunk's number, -1 the end of a stream, -2 finalizing. wanted says that somebody else
-- waits, taken that it was somebody else's when it ended. A crash of the database loses all of it, which costs whoever held something one more attempt.
CREATE UNLOGGED TABLE upload_leases (
    upload BYTEA NOT NULL,
    slot   BIGINT NOT NULL,
    holder BIGINT NOT NULL,
    until  BIGINT NOT NULL,
    wanted BOOLEAN NOT NULL,
    taken  BOOLEAN NOT NULL,
    PRIMARY KEY (upload, slot)
) WITH (fillfactor = 50);
