//! `[uploads]` of the configuration file, and where the bytes go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use driftline_engine::{Blobs, TenantUploads, UploadRules, Verify};
use driftline_model::TenantId;
use driftline_storage::{LocalBlobs, S3Blobs};
use driftline_uploads::{AllowList, Disk, Durability, Expiry};
use serde::Deserialize;

use crate::bucket::BucketConfig;
use crate::verify::Command;

/// `[uploads]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UploadsConfig {
    /// Where the bytes are kept; absent: `uploads` in the data folder.
    dir: Option<PathBuf>,
    chunk_bytes: Option<u64>,
    size_max: Option<u64>,
    open_max: Option<u64>,
    bodies_max: Option<u64>,
    durability: Option<DurabilityChoice>,
    expiry: Option<ExpiryChoice>,
    expires_after_s: Option<u64>,
    expires_latest_s: Option<u64>,
    sweep_s: Option<u64>,
    quota_bytes: Option<u64>,
    content_types: Option<Vec<String>>,
    /// The program that looks at files before they are released, with its arguments.
    verify_command: Option<Vec<String>>,
    verify_s: Option<u64>,
    /// `[uploads.s3]`: the bytes are kept in a bucket, and not on a disk.
    s3: Option<BucketConfig>,
    /// `[uploads.tenants.<name>]`
    tenants: BTreeMap<String, TenantConfig>,
}

/// What is different for one tenant.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TenantConfig {
    quota_bytes: Option<u64>,
    content_types: Option<Vec<String>>,
    verify: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DurabilityChoice {
    Fsync,
    Os,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExpiryChoice {
    Sliding,
    Fixed,
}

/// The bytes of a chunk, unless the file says otherwise.
const CHUNK_BYTES: u64 = 1 << 20;
/// Chunks are at most so long: what is sent again after a broken connection is sent whole.
const CHUNK_BYTES_MAX: u64 = 1 << 30;
/// Seconds between two sweeps.
const SWEEP_S: u64 = 60;
/// Seconds that the program may look at one file.
const VERIFY_S: u64 = 60;
const DAY_S: u64 = 86_400;

/// What is made of `[uploads]`.
pub(crate) struct Uploads {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) rules: UploadRules,
    pub(crate) sweep: Duration,
}

impl UploadsConfig {
    /// Reads the rules.
    ///
    /// # Errors
    /// The error names the key and what is wrong with it.
    pub(crate) fn rules(&self) -> anyhow::Result<UploadRules> {
        self.check()?;
        let defaults = UploadRules::default();
        let verifier = match &self.verify_command {
            None => None,
            Some(words) => {
                let limit = Duration::from_secs(self.verify_s.unwrap_or(VERIFY_S));
                let command =
                    Command::new(words, limit).context("uploads.verify_command names no program")?;
                Some(Arc::new(command) as Arc<dyn Verify>)
            }
        };
        let tenant = TenantUploads {
            quota_bytes: self.quota_bytes.unwrap_or(defaults.tenant.quota_bytes),
            allowed: allowed("content_types", self.content_types.as_deref())?.unwrap_or_default(),
            verified: verifier.is_some(),
        };
        let mut tenants = BTreeMap::new();
        for (name, own) in &self.tenants {
            let id =
                TenantId::new(name).with_context(|| format!("uploads.tenants: {name:?} is not a tenant"))?;
            let allowed = allowed(&format!("tenants.{name}.content_types"), own.content_types.as_deref())?;
            if own.verify == Some(true) && verifier.is_none() {
                bail!("uploads.tenants.{name}.verify needs uploads.verify_command");
            }
            let rules = TenantUploads {
                quota_bytes: own.quota_bytes.unwrap_or(tenant.quota_bytes),
                allowed: allowed.unwrap_or_else(|| tenant.allowed.clone()),
                verified: own.verify.unwrap_or(tenant.verified),
            };
            tenants.insert(id, rules);
        }
        Ok(UploadRules {
            size_max: self.size_max.unwrap_or(defaults.size_max),
            open_max: self.open_max.unwrap_or(defaults.open_max),
            bodies_max: self.bodies_max.unwrap_or(defaults.bodies_max),
            expiry: self.expiry(),
            tenant,
            tenants,
            verifier,
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        let numbers = [
            ("chunk_bytes", self.chunk_bytes),
            ("size_max", self.size_max),
            ("open_max", self.open_max),
            ("bodies_max", self.bodies_max),
            ("expires_after_s", self.expires_after_s),
            ("expires_latest_s", self.expires_latest_s),
            ("sweep_s", self.sweep_s),
            ("verify_s", self.verify_s),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == Some(0)) {
            bail!("uploads.{name} must be at least 1");
        }
        let sizes = [("size_max", self.size_max), ("quota_bytes", self.quota_bytes)];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| size.is_some_and(|size| size > 1 << 53)) {
            bail!("uploads.{name} must be at most 2^53");
        }
        if self.chunk_bytes.is_some_and(|bytes| bytes > CHUNK_BYTES_MAX) {
            bail!("uploads.chunk_bytes must be at most {CHUNK_BYTES_MAX}");
        }
        if self.verify_command.is_none() && self.verify_s.is_some() {
            bail!("uploads.verify_s needs uploads.verify_command");
        }
        self.check_bucket()
    }

    /// Checks what a bucket needs, and what only a disk has.
    fn check_bucket(&self) -> anyhow::Result<()> {
        let Some(bucket) = &self.s3 else { return Ok(()) };
        let of_a_disk = [
            ("dir", self.dir.is_some(), "the bytes are in the bucket"),
            ("durability", self.durability.is_some(), "what S3 acknowledges is durable"),
            ("chunk_bytes", self.chunk_bytes.is_some(), "set uploads.s3.chunk_bytes"),
        ];
        if let Some((name, _, why)) = of_a_disk.iter().find(|(_, given, _)| *given) {
            bail!("uploads.{name} does not go with uploads.s3: {why}");
        }
        bucket.options().map(drop)
    }

    fn expiry(&self) -> Expiry {
        let after_ms = self.expires_after_s.unwrap_or(DAY_S).saturating_mul(1000);
        let latest_ms = self.expires_latest_s.map(|latest_s| latest_s.saturating_mul(1000));
        match self.expiry {
            Some(ExpiryChoice::Fixed) => Expiry::Fixed { whole_ms: latest_ms.unwrap_or(after_ms) },
            None | Some(ExpiryChoice::Sliding) => {
                Expiry::Sliding { idle_ms: after_ms, whole_ms: latest_ms.unwrap_or(7 * DAY_S * 1000) }
            }
        }
    }

    /// Opens the place of the bytes. `config_folder` is where paths start from, and `data` the data folder.
    ///
    /// # Errors
    /// A folder that cannot be made or opened, and what [`UploadsConfig::rules`] refuses.
    pub(crate) fn open(&self, config_folder: &Path, data: &Path) -> anyhow::Result<Uploads> {
        let rules = self.rules()?;
        let sweep = Duration::from_secs(self.sweep_s.unwrap_or(SWEEP_S));
        let blobs: Arc<dyn Blobs> = match &self.s3 {
            Some(bucket) => Arc::new(S3Blobs::open(&bucket.options()?).context("uploads.s3")?),
            None => Arc::new(self.open_disk(config_folder, data)?),
        };
        Ok(Uploads { blobs, rules, sweep })
    }

    fn open_disk(&self, config_folder: &Path, data: &Path) -> anyhow::Result<LocalBlobs<Disk>> {
        let folder = self.dir.as_ref().map_or_else(|| data.join("uploads"), |dir| config_folder.join(dir));
        let disk =
            Disk::open(&folder).with_context(|| format!("uploads cannot be kept in {}", folder.display()))?;
        let durability = match self.durability {
            Some(DurabilityChoice::Os) => Durability::Os,
            None | Some(DurabilityChoice::Fsync) => Durability::Fsync,
        };
        Ok(LocalBlobs::new(disk, durability, self.chunk_bytes.unwrap_or(CHUNK_BYTES)))
    }

    /// Takes credentials of the environment, where a bucket is named.
    pub(crate) fn take_credentials(&mut self, given: impl Fn(&str) -> Option<String>) {
        if let Some(bucket) = &mut self.s3 {
            bucket.take_credentials(given);
        }
    }
}

fn allowed(name: &str, entries: Option<&[String]>) -> anyhow::Result<Option<AllowList>> {
    let list = entries.map(AllowList::new).transpose();
    list.with_context(|| {
        format!("uploads.{name}: use types such as \"image/png\" and classes such as \"image/*\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<UploadRules> {
        toml::from_str::<UploadsConfig>(text)?.rules()
    }

    #[test]
    fn tenants_have_rules_of_their_own() {
        let rules = read(
            "quota_bytes = 1000\ncontent_types = [\"image/*\"]\nexpiry = \"fixed\"\nexpires_after_s = 60\n\
             [tenants.acme]\nquota_bytes = 5\n[tenants.open]\ncontent_types = []",
        )
        .unwrap();
        assert_eq!(rules.expiry, Expiry::Fixed { whole_ms: 60_000 });
        let of = |tenant: &str| rules.of(&TenantId::new(tenant).unwrap()).clone();
        let images = AllowList::new(["image/*"]).unwrap();
        assert_eq!((of("acme").quota_bytes, of("acme").allowed), (5, images.clone()));
        assert_eq!((of("open").quota_bytes, of("open").allowed), (1000, AllowList::default()));
        assert_eq!((of("other").quota_bytes, of("other").allowed), (1000, images));
        assert_eq!(read("").unwrap().expiry, Expiry::default());
    }

    #[test]
    fn a_bucket_takes_the_place_of_the_disk() {
        let config = |text: &str| toml::from_str::<UploadsConfig>(text).unwrap();
        let mut in_bucket = config(&format!("{BUCKET}chunk_bytes = 5242880"));
        in_bucket.take_credentials(|_| Some("from the environment".into()));
        let uploads = in_bucket.open(Path::new("/"), Path::new("/nowhere")).unwrap();
        assert_eq!((uploads.blobs.chunk_bytes(), uploads.blobs.takes_streams()), (5 << 20, false));
        assert!(!format!("{in_bucket:?}").contains("environment"), "secrets are not printed");

        let folder = driftline_testkit::TempFolder::new();
        let mut on_disk = config("");
        on_disk.take_credentials(|_| Some("for another program".into()));
        let uploads = on_disk.open(Path::new("/"), folder.path()).unwrap();
        assert_eq!((uploads.blobs.chunk_bytes(), uploads.blobs.takes_streams()), (CHUNK_BYTES, true));
    }

    const BUCKET: &str = "[s3]\nbucket = \"files\"\naccess_key_id = \"a\"\nsecret_access_key = \"b\"\n";

    #[test]
    fn what_is_wrong_with_a_bucket_is_named() {
        let table = [
            ("dir = \"x\"", "", "uploads.dir does not go with uploads.s3"),
            ("durability = \"os\"", "", "uploads.durability does not go with uploads.s3"),
            ("chunk_bytes = 9000000", "", "set uploads.s3.chunk_bytes"),
            ("", "chunk_bytes = 5000000", "uploads.s3: chunk_bytes is 5000000"),
            ("", "memory_bytes = 5", "uploads.s3: memory_bytes is 5"),
            ("", "prefix = \"/a\"", "uploads.s3: prefix"),
            ("", "region = \"a/b\"", "uploads.s3: region"),
            ("", "endpoint = \"minio:9000\"", "uploads.s3: endpoint"),
            ("", "endpoint = \"http://10.0.0.1:9000\"\npath_style = false", "path_style is needed"),
            ("", "secret = \"x\"", "secret"),
        ];
        for (above, below, named) in table {
            let error = format!("{:#}", read(&format!("{above}\n{BUCKET}{below}")).unwrap_err());
            assert!(error.contains(named), "{above} {below}: {error}");
        }
        let bare = format!("{:#}", read("[s3]\nbucket = \"files\"").unwrap_err());
        assert!(bare.contains("access_key_id and secret_access_key"), "{bare}");
        let unnamed = format!("{:#}", read("[s3]\nregion = \"eu-central-1\"").unwrap_err());
        assert!(unnamed.contains("bucket"), "{unnamed}");
        read(&format!("{BUCKET}endpoint = \"http://minio:9000\"")).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("chunk_bytes = 0", "uploads.chunk_bytes must be at least 1"),
            ("chunk_bytes = 2000000000", "uploads.chunk_bytes must be at most"),
            ("size_max = 9007199254740993", "uploads.size_max must be at most 2^53"),
            ("content_types = [\"png\"]", "uploads.content_types"),
            ("[tenants.acme]\ncontent_types = [\"*/*\"]", "uploads.tenants.acme.content_types"),
            ("[tenants.\"\"]\nquota_bytes = 1", "is not a tenant"),
            ("[tenants.acme]\nverify = true", "needs uploads.verify_command"),
            ("verify_command = []", "uploads.verify_command"),
            ("verify_s = 5", "needs uploads.verify_command"),
            ("durability = \"none\"", "durability"),
            ("chunks = 5", "chunks"),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
