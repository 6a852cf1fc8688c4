//! The commands that do not serve.

mod backup;
mod device;
mod doctor;
mod outbox;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use driftline_engine::Clock as _;
use driftline_transport::{Grant, SystemClock};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::key;
use crate::run::{DATABASE, data_dir};
use crate::store::DataPlace;

pub(crate) use backup::{BackupArguments, RestoreArguments, backup, restore};
pub(crate) use device::{DeviceArguments, device};
pub(crate) use doctor::{DoctorArguments, doctor};
pub(crate) use outbox::{OutboxArguments, outbox};

/// What a token is made for.
#[derive(Debug, Args)]
pub(crate) struct TokenArguments {
    /// The configuration file, for its key.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder, for its development key.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// The user; a number stays a number.
    #[arg(long)]
    sub: String,
    /// A role; may be given several times.
    #[arg(long = "role")]
    roles: Vec<String>,
    /// Binds the token to a device.
    #[arg(long)]
    device_id: Option<String>,
    /// How long it lasts, such as 90s, 15m, 1h or 30d.
    #[arg(long, default_value = "1h", value_parser = duration_s)]
    ttl: u64,
    /// A further claim, `name=value`; the value is JSON if it can be read as such.
    #[arg(long = "claim", value_parser = claim)]
    claims: Vec<(String, Value)>,
}

/// Which database is migrated.
#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder of the embedded database.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Prints a token and nothing else.
pub(crate) fn token(arguments: &TokenArguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let folder = data_dir(arguments.data_dir.as_deref(), &config);
    let secret = key::development(&config, &folder)?;
    let sub = arguments.sub.parse::<i64>().map_or_else(|_| Value::from(arguments.sub.as_str()), Value::from);
    let roles = if arguments.roles.is_empty() { vec!["user".to_owned()] } else { arguments.roles.clone() };
    let claims: Map<String, Value> = arguments.claims.iter().cloned().collect();
    let token = secret.mint(&Grant {
        tenant: arguments.tenant.clone(),
        sub,
        roles,
        device_id: arguments.device_id.clone(),
        expires_s: SystemClock.now_ms() / 1000 + arguments.ttl,
        claims,
    });
    println!("{token}");
    Ok(())
}

/// Runs the migrations that did not run yet, and lists them.
pub(crate) fn migrate(arguments: &MigrateArguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let folder = data_dir(arguments.data_dir.as_deref(), &config);
    let place = data_place(&config, &folder)?;
    for name in &place.migrate()? {
        println!("ran {name}");
    }
    println!("{place} is at the newest schema");
    Ok(())
}

/// Finds where the data is; the folder is made if it is needed.
pub(crate) fn data_place(config: &Config, folder: &Path) -> anyhow::Result<DataPlace> {
    let file = if config.store.url.is_some() { PathBuf::new() } else { database(folder)? };
    Ok(config.data_place(file))
}

/// Refuses a command that is for the embedded database while the data is in another one.
fn require_embedded(config: &Config) -> anyhow::Result<()> {
    match &config.store.url {
        None => Ok(()),
        Some(url) => bail!("the data is in {url}: copy and restore it with the tools of PostgreSQL"),
    }
}

pub(crate) fn database(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder.join(DATABASE))
}

fn duration_s(text: &str) -> anyhow::Result<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().context("a duration starts with a number")?;
    let unit_s = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        other => bail!("{other:?} is no unit: use s, m, h or d"),
    };
    number.checked_mul(unit_s).context("the duration is too long")
}

fn claim(text: &str) -> anyhow::Result<(String, Value)> {
    let (name, value) = text.split_once('=').context("a claim is name=value")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(duration_s(text).unwrap(), seconds);
        }
        for bad in ["", "h", "1w", "-1s", "99999999999999999d"] {
            assert!(duration_s(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn claims_are_json_where_they_can_be() {
        assert_eq!(claim("cadet_id=7").unwrap().1, Value::from(7));
        assert_eq!(claim("name=ada").unwrap().1, Value::from("ada"));
        assert!(claim("nothing").is_err());
    }
}
