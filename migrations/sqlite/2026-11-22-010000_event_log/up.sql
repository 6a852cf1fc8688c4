-- The log of events: one per tenant, told to whoever listens and kept for whoever comes later.

-- Nothing was ever written here: events were not kept.
DROP INDEX events_topic;
DROP TABLE events;

CREATE TABLE events (
    tenant_no  INTEGER NOT NULL,
    event_id   BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    -- The topics' names, parted by spaces, which no name holds.
    topics     TEXT NOT NULL,
    -- How many rows of event_topics name it; it goes with the last of them.
    refs       INTEGER NOT NULL,
    -- The device that it concerns: user and name, as in the registry's keys.
    owner      TEXT,
    -- Members of a JSON object: the values that filled the topics' placeholders.
    vals       TEXT NOT NULL,
    data       TEXT NOT NULL,
    dedupe_key TEXT,
    at         BIGINT NOT NULL,
    -- When it was kept, by which it ages.
    kept_at    BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, event_id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX events_dedupe ON events (tenant_no, dedupe_key) WHERE dedupe_key IS NOT NULL;

-- Which events a topic has; numbers of topics belong to one tenant.
CREATE TABLE event_topics (
    topic_no  INTEGER NOT NULL,
    event_id  BIGINT NOT NULL,
    PRIMARY KEY (topic_no, event_id)
) WITHOUT ROWID;

-- The highest event that the topic lost to its retention.
ALTER TABLE topics ADD COLUMN floor BIGINT NOT NULL DEFAULT 0;

-- The latest state of what events tell of, so that late ones are dropped.
CREATE TABLE event_versions (
    tenant_no INTEGER NOT NULL,
    thing     TEXT NOT NULL,
    version   BIGINT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, thing)
) WITHOUT ROWID;

-- How far devices have followed the log, written behind.
CREATE TABLE event_devices (
    tenant_no   INTEGER NOT NULL,
    device_no   INTEGER NOT NULL,
    epoch       TEXT NOT NULL,
    acked       BIGINT NOT NULL DEFAULT 0,
    since       BIGINT,
    -- Topics, parted by spaces.
    topics      TEXT NOT NULL DEFAULT '',
    refused     TEXT NOT NULL DEFAULT '',
    slow        BIGINT,
    listened_at BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_no, device_no)
) WITHOUT ROWID;

-- Which notifications users have read.
CREATE TABLE notice_reads (
    tenant_no INTEGER NOT NULL,
    sub       TEXT NOT NULL,
    notice_id TEXT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (tenant_no, sub, notice_id)
) WITHOUT ROWID;

-- What other programs publish, in transactions of their own. Columns for claims are added as they are configured.
CREATE TABLE sync_events (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant       TEXT NOT NULL DEFAULT 'default',
    event_type   TEXT,
    topic        TEXT,
    user_id      TEXT,
    role         TEXT,
    payload      TEXT,
    dedupe_key   TEXT,
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    processed_at BIGINT,
    error        TEXT
);
CREATE INDEX sync_events_waiting ON sync_events (id) WHERE processed_at IS NULL;
CREATE INDEX sync_events_processed ON sync_events (processed_at) WHERE processed_at IS NOT NULL;
