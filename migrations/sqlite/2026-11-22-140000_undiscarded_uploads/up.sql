-- Uploads that are over and of which something is still staged where the place of the bytes has a name for it.
CREATE INDEX uploads_undiscarded ON uploads (changed_at, id)
    WHERE state IN ('cancelled', 'expired') AND staged IS NOT NULL;
