//! Which bucket it is, how it is reached, and what may not be asked of it.

use std::fmt;
use std::time::Duration;

use object_store::path::Path;
use reqwest::Url;
use thiserror::Error;

/// S3 takes no shorter part, but for the last one of an object.
const CHUNK_BYTES_MIN: u64 = 5 << 20;

/// S3 takes no longer part.
const CHUNK_BYTES_MAX: u64 = 5 << 30;

/// The bytes of a chunk, unless told otherwise.
const CHUNK_BYTES: u64 = 8 << 20;

/// The bytes of chunks that are held in memory at once, unless told otherwise.
const MEMORY_BYTES: u64 = 256 << 20;

/// How long an answer may take, beside the time for the bytes that go with the question.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A bucket, and how it is reached.
#[derive(Clone)]
pub struct S3Options {
    /// Where S3 answers, such as `https://minio.example:9000`; none: at Amazon, in the region.
    pub endpoint: Option<String>,
    /// The region, which every request is signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What the names of all objects begin with; a folder ends with a slash.
    pub prefix: String,
    /// Who asks.
    pub access_key_id: String,
    /// What proves it; it is never printed.
    pub secret_access_key: String,
    /// Whether the bucket is named in the path and not in the host.
    pub path_style: bool,
    /// Whether bytes and signatures may go over plain HTTP.
    pub allow_http: bool,
    /// The bytes of a chunk, unless a file needs longer ones.
    pub chunk_bytes: u64,
    /// The bytes of chunks that are held in memory at once, over all uploads; more wait, and are refused if they find no
    /// room soon.
    pub memory_bytes: u64,
    /// How long an answer may take, beside the time for the bytes that go with the question.
    pub timeout: Duration,
}

impl S3Options {
    /// Names a bucket at Amazon; everything else has its default.
    #[must_use]
    pub fn new(bucket: &str, region: &str, access_key_id: &str, secret_access_key: &str) -> Self {
        Self {
            endpoint: None,
            region: region.into(),
            bucket: bucket.into(),
            prefix: String::new(),
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
            path_style: false,
            allow_http: false,
            chunk_bytes: CHUNK_BYTES,
            memory_bytes: MEMORY_BYTES,
            timeout: TIMEOUT,
        }
    }

    /// Checks what can be told without asking S3.
    ///
    /// # Errors
    /// [`S3Error`] names what is wrong.
    pub fn check(&self) -> Result<(), S3Error> {
        let bytes = self.chunk_bytes;
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes) {
            return Err(S3Error::ChunkBytes { bytes });
        }
        if self.memory_bytes < bytes {
            return Err(S3Error::MemoryBytes { bytes: self.memory_bytes });
        }
        if !is_name(&self.bucket, 63) {
            return Err(S3Error::Bucket);
        }
        if !is_name(&self.region, 63) {
            return Err(S3Error::Region);
        }
        if self.access_key_id.is_empty() || self.secret_access_key.is_empty() {
            return Err(S3Error::Credentials);
        }
        self.folder()?;
        self.host().map(drop)
    }

    /// Returns what the names of files begin with, up to the first slash that is not part of it.
    pub(super) fn folder(&self) -> Result<Path, S3Error> {
        let folder = format!("{}files", self.prefix);
        let path = Path::parse(&folder).map_err(|_| S3Error::Prefix)?;
        if path.as_ref() == folder { Ok(path) } else { Err(S3Error::Prefix) }
    }

    /// Returns the endpoint with the bucket in it, unless that is named in the path; none: at Amazon.
    pub(super) fn host(&self) -> Result<Option<String>, S3Error> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let mut url = Url::parse(endpoint).map_err(|_| S3Error::Endpoint)?;
        let plain = url.username().is_empty() && url.password().is_none();
        if !plain || url.query().is_some() || url.fragment().is_some() {
            return Err(S3Error::Endpoint);
        }
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(S3Error::PlainHttp),
            _ => return Err(S3Error::Endpoint),
        }
        if !self.path_style {
            let host = url.domain().ok_or(S3Error::NoDomain)?;
            let host = format!("{}.{host}", self.bucket);
            url.set_host(Some(&host)).map_err(|_| S3Error::Endpoint)?;
        }
        Ok(Some(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("path_style", &self.path_style)
            .field("chunk_bytes", &self.chunk_bytes)
            .field("memory_bytes", &self.memory_bytes)
            .finish_non_exhaustive()
    }
}

/// Tells whether a text can be a bucket or a region: it gets into hosts and paths.
fn is_name(text: &str, len_max: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let edges = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= len_max
        && text.bytes().all(fits)
        && edges(text.bytes().next())
        && edges(text.bytes().next_back())
}

/// Why a bucket cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum S3Error {
    /// S3 takes no such parts.
    #[error("chunk_bytes is {bytes}: S3 takes parts of {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} bytes")]
    ChunkBytes {
        /// What was asked for.
        bytes: u64,
    },
    /// Not even one chunk could be held.
    #[error("memory_bytes is {bytes}, less than a chunk has")]
    MemoryBytes {
        /// What was asked for.
        bytes: u64,
    },
    /// No bucket has such a name.
    #[error("bucket: letters, digits, dots and hyphens, at most 63")]
    Bucket,
    /// No region has such a name.
    #[error("region: letters, digits and hyphens, such as \"eu-central-1\"")]
    Region,
    /// Nobody would be known to ask.
    #[error("access_key_id and secret_access_key are both needed")]
    Credentials,
    /// No object may have such a name.
    #[error("prefix: segments between slashes that are not empty, \".\" or \"..\", and no slash first")]
    Prefix,
    /// Nothing can be asked there.
    #[error("endpoint: a URL such as \"https://minio.example:9000\", without a user, a query or a fragment")]
    Endpoint,
    /// Bytes and signatures would go in plain sight.
    #[error("endpoint: http:// is not allowed")]
    PlainHttp,
    /// An address cannot hold the bucket's name.
    #[error("endpoint: only a domain can hold the bucket's name, else path_style is needed")]
    NoDomain,
    /// The client could not be made.
    #[error("the client of S3 cannot be made: {0}")]
    Client(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> S3Options {
        S3Options::new("files", "eu-central-1", "AKID", "a secret")
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bytes = CHUNK_BYTES_MIN - 1;
        let at = |endpoint: &str| S3Options { endpoint: Some(endpoint.into()), ..options() };
        let table = [
            (S3Options { chunk_bytes: bytes, ..options() }, S3Error::ChunkBytes { bytes }),
            (S3Options { memory_bytes: 1, ..options() }, S3Error::MemoryBytes { bytes: 1 }),
            (S3Options { bucket: "a/b".into(), ..options() }, S3Error::Bucket),
            (S3Options { bucket: "-".into(), ..options() }, S3Error::Bucket),
            (S3Options { region: String::new(), ..options() }, S3Error::Region),
            (S3Options { secret_access_key: String::new(), ..options() }, S3Error::Credentials),
            (S3Options { prefix: "a//".into(), ..options() }, S3Error::Prefix),
            (S3Options { prefix: "../".into(), ..options() }, S3Error::Prefix),
            (S3Options { prefix: "/a/".into(), ..options() }, S3Error::Prefix),
            (at("minio:9000"), S3Error::Endpoint),
            (at("https://ada:secret@minio.example"), S3Error::Endpoint),
            (at("http://minio.example"), S3Error::PlainHttp),
            (at("https://127.0.0.1:9000"), S3Error::NoDomain),
        ];
        for (options, error) in table {
            assert_eq!(options.check(), Err(error), "{options:?}");
        }
        assert_eq!(options().check(), Ok(()));
    }

    #[test]
    fn the_bucket_is_in_the_host_or_in_the_path() {
        let mut options = S3Options { endpoint: Some("https://minio.example:9000/".into()), ..options() };
        assert_eq!(options.host(), Ok(Some("https://files.minio.example:9000".into())));
        options.path_style = true;
        assert_eq!(options.host(), Ok(Some("https://minio.example:9000".into())));
        options.prefix = "apps/one-".into();
        assert_eq!(options.folder().unwrap().as_ref(), "apps/one-files");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let printed = format!("{:?}", options());
        assert!(!printed.contains("secret") && !printed.contains("AKID"), "{printed}");
    }
}
