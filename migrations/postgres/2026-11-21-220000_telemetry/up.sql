-- Samples of telemetry kinds: appended, unique by id; a later sample of a key takes the place of an earlier one. at is the
-- time that a sample tells of, sent_at the device's time of sending.
CREATE TABLE samples (
    tenant_no   INTEGER NOT NULL,
    kind_no     INTEGER NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    device_no   INTEGER NOT NULL,
    at          BIGINT NOT NULL,
    sent_at     BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    hash        BIGINT NOT NULL,
    fields      TEXT COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX samples_key ON samples (tenant_no, kind_no, id);
CREATE INDEX samples_time ON samples (tenant_no, kind_no, device_no, at, id);
-- Every kind has a retention of its own: what is old of one must be found without reading what is kept of the others.
CREATE INDEX samples_received ON samples (kind_no, received_at);

-- What was answered to requests with a key. Without an answer the items of the request answer again; attempt and
-- lease_until stand while an effect outside the database is under way.
CREATE TABLE idempotency (
    tenant_no   INTEGER NOT NULL,
    owner       TEXT COLLATE "C" NOT NULL,
    key         TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA NOT NULL,
    expires_at  BIGINT NOT NULL,
    answer      BYTEA,
    attempt     BIGINT,
    lease_until BIGINT,
    PRIMARY KEY (tenant_no, owner, key)
);
CREATE INDEX idempotency_expires ON idempotency (expires_at);
-- Numbers of attempts rise over all keys, so that they outlive the rows.
CREATE SEQUENCE idempotency_attempts AS BIGINT;

-- What devices counted and measured, by the hour (UTC) in which it began.
CREATE TABLE series (
    tenant_no INTEGER NOT NULL,
    hour      BIGINT NOT NULL,
    name      TEXT COLLATE "C" NOT NULL,
    counter   BIGINT NOT NULL,
    sketch    BYTEA NOT NULL,
    PRIMARY KEY (tenant_no, hour, name)
);

-- Device hashes, of which only the SHA-256 is kept. They lead to a device of whichever tenant.
CREATE TABLE device_digests (
    digest    BYTEA NOT NULL PRIMARY KEY,
    tenant_no INTEGER NOT NULL,
    device_no INTEGER NOT NULL,
    set_at    BIGINT NOT NULL
);
CREATE UNIQUE INDEX device_digests_device ON device_digests (device_no);
