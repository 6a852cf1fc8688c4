//! The key that signs tokens.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use driftline_engine::Random as _;
use driftline_transport::{SharedSecret, SystemRandom};

use crate::config::Config;

/// Finds the key: the configured one, else the development key of the data folder, which is made on first use.
pub(crate) fn development(config: &Config, data_dir: &Path) -> anyhow::Result<SharedSecret> {
    match configured(config)? {
        Some(secret) => Ok(secret),
        None => approving(of_folder(data_dir)?, config),
    }
}

/// The configured key, if there is one.
pub(crate) fn configured(config: &Config) -> anyhow::Result<Option<SharedSecret>> {
    let Some(secret) = &config.auth.secret else { return Ok(None) };
    let secret = SharedSecret::new(secret.as_bytes()).context("auth.secret must be at least 16 bytes")?;
    approving(secret, config).map(Some)
}

/// Has the key let in only those of whom the configured claim is true.
fn approving(secret: SharedSecret, config: &Config) -> anyhow::Result<SharedSecret> {
    match config.auth.approved_claim.as_deref() {
        None => Ok(secret),
        Some("") => bail!("auth.approved_claim must name a claim"),
        Some(claim) if TAKEN.contains(&claim) => {
            bail!("auth.approved_claim: {claim:?} says something else of a user")
        }
        Some(claim) => Ok(secret.approved_by(claim)),
    }
}

/// Claims that are never true or false.
const TAKEN: [&str; 11] =
    ["sub", "exp", "iat", "nbf", "iss", "aud", "jti", "tenant", "role", "roles", "device_id"];

fn of_folder(data_dir: &Path) -> anyhow::Result<SharedSecret> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
    let file = data_dir.join("dev.key");
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    match made {
        Ok(mut made) => {
            let mut bytes = [0_u8; 32];
            SystemRandom.fill(&mut bytes);
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            made.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", file.display())),
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    SharedSecret::new(text.trim().as_bytes()).with_context(|| format!("{} holds no key", file.display()))
}
