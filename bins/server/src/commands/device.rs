//! The registry of devices, at the store itself.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceQuery, DeviceRow, Random as _, Silent, Store as _,
    hash_digest,
};
use driftline_model::{DeviceId, TenantId, TenantNo, UserId};
use driftline_protocol::{format_millis, is_device_hash};
use driftline_storage::AnyStore;
use driftline_transport::{SystemClock, SystemRandom};

use super::data_place;
use crate::config::Config;
use crate::run::{data_dir, runtime};
use crate::store::{self, DataPlace, Surroundings};

/// What is done with which devices.
#[derive(Debug, Args)]
pub(crate) struct DeviceArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Register a device, and print the hash by which it enters; it is shown only now.
    Add(AddArguments),
    /// List the devices of a tenant.
    List(ListArguments),
    /// Let a device connect again.
    Enable(NamedArguments),
    /// Let a device connect no more, with a token or a hash; what it sent stays.
    Disable(NamedArguments),
    /// Take a device off the registry: its hash leads nowhere, and it is refused until it is added again.
    Remove(NamedArguments),
}

#[derive(Debug, Args)]
struct AddArguments {
    #[command(flatten)]
    named: NamedArguments,
    /// The hash by which it enters; left out: a random one.
    #[arg(long)]
    hash: Option<String>,
    /// Register it, but let it not connect yet.
    #[arg(long)]
    disabled: bool,
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// Only the devices of this user.
    #[arg(long)]
    owner: Option<String>,
}

#[derive(Debug, Args)]
struct NamedArguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// The user that it belongs to.
    #[arg(long)]
    owner: String,
    /// Its name within the user.
    #[arg(long)]
    id: String,
}

#[derive(Debug, Args)]
struct PlaceArguments {
    /// The tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Devices of one page of the list.
const PAGE_ROWS: usize = 500;
/// Bytes of a random hash.
const HASH_BYTES: usize = 16;

/// Does what was asked for.
pub(crate) fn device(arguments: &DeviceArguments) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Add(add) => {
            let hash = add.hash.clone().map_or_else(|| Ok(random_hash()), checked_hash)?;
            let done = Registry::open(&add.named.place)?.add(&add.named, &hash, !add.disabled);
            done.map(|()| println!("{hash}"))
        }
        Action::List(list) => Registry::open(&list.place)?.list(list.owner.as_deref()),
        Action::Enable(named) => Registry::open(&named.place)?.set(named, DeviceAction::Update, Some(true)),
        Action::Disable(named) => Registry::open(&named.place)?.set(named, DeviceAction::Update, Some(false)),
        Action::Remove(named) => Registry::open(&named.place)?.set(named, DeviceAction::Retire, None),
    }
}

/// The devices of one tenant in an open store.
struct Registry {
    runtime: tokio::runtime::Runtime,
    store: AnyStore,
    tenant: TenantNo,
}

impl Registry {
    fn open(arguments: &PlaceArguments) -> anyhow::Result<Self> {
        let tenant = TenantId::new(&arguments.tenant)
            .with_context(|| format!("{:?} is not a tenant", arguments.tenant))?;
        let config = Config::load(arguments.config.as_deref())?;
        let folder = data_dir(arguments.data_dir.as_deref(), &config);
        let place = data_place(&config, &folder)?;
        let surroundings = Surroundings {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            listeners: Arc::new(Silent),
            outbox_claims: config.claims()?,
        };
        let store = store::open(&place, &config.store, &config.limits()?, surroundings);
        let store = store.with_context(|| match place {
            DataPlace::Embedded(_) => {
                "the devices of a server that runs are changed over HTTP: /api/v1/devices, with the role admin"
            }
            DataPlace::Postgres { .. } => "the registry cannot be opened",
        })?;
        let runtime = runtime()?;
        let tenant = runtime.block_on(store.tenant(&tenant))?;
        Ok(Self { runtime, store, tenant })
    }

    /// Registers a device. One that only ever connected with a token gets the hash beside it.
    fn add(&self, named: &NamedArguments, hash: &str, enabled: bool) -> anyhow::Result<()> {
        let digest = Some(hash_digest(hash));
        let register =
            DeviceChange { enabled: Some(enabled), digest, ..named.change(DeviceAction::Register)? };
        match self.apply(register.clone())? {
            DeviceChanged::Done(_) => Ok(()),
            DeviceChanged::Exists(row) if !row.hashed => {
                match self.apply(DeviceChange { action: DeviceAction::Update, ..register })? {
                    DeviceChanged::Done(_) => Ok(()),
                    other => refuse(named, &other),
                }
            }
            other => refuse(named, &other),
        }
    }

    fn set(&self, named: &NamedArguments, action: DeviceAction, enabled: Option<bool>) -> anyhow::Result<()> {
        match self.apply(DeviceChange { enabled, ..named.change(action)? })? {
            DeviceChanged::Done(row) => {
                println!("{}", if action == DeviceAction::Retire { removed(&row) } else { line(&row) });
                Ok(())
            }
            other => refuse(named, &other),
        }
    }

    fn list(&self, owner: Option<&str>) -> anyhow::Result<()> {
        let mut after = None;
        loop {
            let query = DeviceQuery { owner: owner.map(Box::from), device_id: None, after, rows: PAGE_ROWS };
            let rows = self.runtime.block_on(self.store.devices(self.tenant, query))?;
            for row in &rows {
                println!("{}", line(row));
            }
            match rows.last() {
                Some(last) if rows.len() == PAGE_ROWS => after = Some(last.device),
                _ => return Ok(()),
            }
        }
    }

    fn apply(&self, change: DeviceChange) -> anyhow::Result<DeviceChanged> {
        Ok(self.runtime.block_on(self.store.change_device(self.tenant, change, None))?)
    }
}

impl NamedArguments {
    fn change(&self, action: DeviceAction) -> anyhow::Result<DeviceChange> {
        UserId::text(&self.owner).with_context(|| format!("{:?} is not a user", self.owner))?;
        let device_id = DeviceId::new(&self.id).with_context(|| format!("{:?} is not a device", self.id))?;
        if self.id.starts_with('$') {
            bail!("a device's name does not begin with $");
        }
        Ok(DeviceChange { owner: self.owner.as_str().into(), device_id, action, enabled: None, digest: None })
    }
}

fn refuse(named: &NamedArguments, changed: &DeviceChanged) -> anyhow::Result<()> {
    let NamedArguments { owner, id, .. } = named;
    match changed {
        DeviceChanged::NotFound => bail!("{owner} has no device {id}: driftline-server device list"),
        DeviceChanged::Exists(_) => {
            bail!("{owner}'s device {id} has a hash already: remove it first if it is to get another one")
        }
        DeviceChanged::HashTaken => bail!("the hash leads to another device: choose another one"),
        other => bail!("the registry answered {other:?}"),
    }
}

fn line(row: &DeviceRow) -> String {
    let enabled = if row.enabled { "enabled" } else { "disabled" };
    let online = if row.online { "online" } else { "offline" };
    let hashed = if row.hashed { "hash" } else { "no hash" };
    let seen = format_millis(row.last_seen_ms);
    format!("{}\t{}\t{enabled}\t{online}\t{hashed}\tlast seen {seen}", row.owner, row.device_id)
}

fn removed(row: &DeviceRow) -> String {
    format!("{}\t{}\tremoved", row.owner, row.device_id)
}

fn random_hash() -> String {
    let mut bytes = [0_u8; HASH_BYTES];
    SystemRandom.fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checked_hash(hash: String) -> anyhow::Result<String> {
    if !is_device_hash(&hash) {
        bail!("a device hash has 16 to 256 visible ASCII characters");
    }
    Ok(hash)
}
