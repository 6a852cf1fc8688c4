-- The registry of devices. connection is the last one that was open, null once it is known to be gone; connected_at tells
-- when it was opened, reported_at when the device said what stands in status and report.
ALTER TABLE devices ADD COLUMN disabled_at BIGINT, ADD COLUMN connection TEXT COLLATE "C",
    ADD COLUMN connected_at BIGINT NOT NULL DEFAULT 0, ADD COLUMN status TEXT COLLATE "C",
    ADD COLUMN report TEXT COLLATE "C", ADD COLUMN reported_at BIGINT NOT NULL DEFAULT 0;
