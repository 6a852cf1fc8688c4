-- What a batch is recognised by when it comes again, and its answer. Without an answer the items of the batch answer again.
ALTER TABLE sync_batches ADD COLUMN fingerprint BYTEA, ADD COLUMN answer BYTEA;
