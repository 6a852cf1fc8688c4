-- Samples of telemetry kinds: appended, unique by id; a later sample of a key takes the place of an earlier one. at is the
-- time that a sample tells of, sent_at the device's time of sending.
CREATE TABLE samples (
    tenant_no   INTEGER NOT NULL,
    kind_no     INTEGER NOT NULL,
    id          TEXT NOT NULL,
    device_no   INTEGER NOT NULL,
    at          BIGINT NOT NULL,
    sent_at     BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    hash        BIGINT NOT NULL,
    fields      TEXT NOT NULL
);
CREATE UNIQUE INDEX samples_key ON samples (tenant_no, kind_no, id);
CREATE INDEX samples_time ON samples (tenant_no, kind_no, device_no, at, id);

-- What was answered to requests with a key. Without an answer the items of the request answer again; attempt and
-- lease_until stand while an effect outside the database is under way.
CREATE TABLE idempotency (
    tenant_no   INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    expires_at  BIGINT NOT NULL,
    answer      BLOB,
    attempt     BIGINT,
    lease_until BIGINT,
    PRIMARY KEY (tenant_no, owner, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires_at);

-- What a batch is recognised by when it comes again, and its answer.
ALTER TABLE sync_batches ADD COLUMN fingerprint BLOB;
ALTER TABLE sync_batches ADD COLUMN answer BLOB;

-- What devices counted and measured, by the hour (UTC) in which it began.
CREATE TABLE series (
    tenant_no INTEGER NOT NULL,
    hour      BIGINT NOT NULL,
    name      TEXT NOT NULL,
    counter   BIGINT NOT NULL,
    sketch    BLOB NOT NULL,
    PRIMARY KEY (tenant_no, hour, name)
) WITHOUT ROWID;

-- The registry of devices. connection is the last one that was open, null once it is known to be gone; connected_at tells
-- when it was opened, reported_at when the device said what stands in status and report.
ALTER TABLE devices ADD COLUMN disabled_at BIGINT;
ALTER TABLE devices ADD COLUMN connection TEXT;
ALTER TABLE devices ADD COLUMN connected_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN status TEXT;
ALTER TABLE devices ADD COLUMN report TEXT;
ALTER TABLE devices ADD COLUMN reported_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX devices_tenant ON devices (tenant_no, device_no);

-- Device hashes, of which only the SHA-256 is kept. They lead to a device of whichever tenant.
CREATE TABLE device_digests (
    digest    BLOB NOT NULL PRIMARY KEY,
    tenant_no INTEGER NOT NULL,
    device_no INTEGER NOT NULL,
    set_at    BIGINT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX device_digests_device ON device_digests (device_no);
