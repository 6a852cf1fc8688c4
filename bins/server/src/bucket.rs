//! `[uploads.s3]` of the configuration file: the bucket that holds the bytes of uploads.

use std::fmt;

use anyhow::Context as _;
use driftline_storage::S3Options;
use serde::Deserialize;

/// `[uploads.s3]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BucketConfig {
    bucket: String,
    /// Absent: that of Amazon's first region, which makers of other S3s take for any.
    region: Option<String>,
    /// Where S3 answers; absent: at Amazon, in the region.
    endpoint: Option<String>,
    #[serde(default)]
    prefix: String,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    /// Absent: true with an endpoint.
    path_style: Option<bool>,
    chunk_bytes: Option<u64>,
    memory_bytes: Option<u64>,
}

/// The region, unless the file says otherwise.
const REGION: &str = "us-east-1";

const ACCESS_KEY_ID: &str = "DRIFTLINE_S3_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "DRIFTLINE_S3_SECRET_ACCESS_KEY";

impl BucketConfig {
    /// Takes credentials of the environment, which come before those of the file.
    pub(crate) fn take_credentials(&mut self, given: impl Fn(&str) -> Option<String>) {
        self.access_key_id = given(ACCESS_KEY_ID).or(self.access_key_id.take());
        self.secret_access_key = given(SECRET_ACCESS_KEY).or(self.secret_access_key.take());
    }

    /// Reads the options.
    ///
    /// # Errors
    /// The error names the key and what is wrong with it.
    pub(crate) fn options(&self) -> anyhow::Result<S3Options> {
        let access_key_id = self.access_key_id.as_deref().unwrap_or_default();
        let secret_access_key = self.secret_access_key.as_deref().unwrap_or_default();
        let region = self.region.as_deref().unwrap_or(REGION);
        let defaults = S3Options::new(&self.bucket, region, access_key_id, secret_access_key);
        let options = S3Options {
            // Whoever writes http:// means it.
            allow_http: self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")),
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            endpoint: self.endpoint.clone(),
            prefix: self.prefix.clone(),
            chunk_bytes: self.chunk_bytes.unwrap_or(defaults.chunk_bytes),
            memory_bytes: self.memory_bytes.unwrap_or(defaults.memory_bytes),
            ..defaults
        };
        options.check().context("uploads.s3")?;
        Ok(options)
    }
}

impl fmt::Debug for BucketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketConfig")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
