//! `[idempotency]` of the configuration file.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use driftline_engine::Windows;
use driftline_idempotency::WINDOW_MS_MAX;
use driftline_model::TenantId;
use serde::Deserialize;

/// `[idempotency]`: for how long answers are remembered under the keys of requests.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct IdempotencyConfig {
    /// Seconds, of tenants without a time of their own.
    window_s: Option<u64>,
    /// `[idempotency.tenants]`: seconds of single tenants.
    tenants: BTreeMap<String, u64>,
}

impl IdempotencyConfig {
    /// Puts what the file says over the defaults.
    pub(crate) fn windows(&self) -> anyhow::Result<Windows> {
        let mut windows = Windows::default();
        if let Some(window_s) = self.window_s {
            windows.default_ms = window_ms("window_s", window_s)?;
        }
        for (tenant, window_s) in &self.tenants {
            let name = format!("tenants.{tenant}");
            let id = TenantId::new(tenant)
                .with_context(|| format!("idempotency.{name}: {tenant:?} is not a tenant"))?;
            windows.tenants.insert(id, window_ms(&name, *window_s)?);
        }
        Ok(windows)
    }
}

fn window_ms(name: &str, window_s: u64) -> anyhow::Result<u64> {
    let longest_s = WINDOW_MS_MAX / 1000;
    if !(1..=longest_s).contains(&window_s) {
        bail!("idempotency.{name} must be from 1 to {longest_s} seconds (90 days)");
    }
    Ok(window_s * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Windows> {
        toml::from_str::<IdempotencyConfig>(text)?.windows()
    }

    #[test]
    fn a_tenant_may_have_a_window_of_its_own() {
        assert_eq!(read("").unwrap(), Windows::default());
        let windows = read("window_s = 3600\n[tenants]\nacme = 7776000\n\"t 1\" = 1").unwrap();
        assert_eq!(windows.default_ms, 3_600_000);
        let of = |tenant: &str| windows.tenants.get(&TenantId::new(tenant).unwrap()).copied();
        assert_eq!((of("acme"), of("t 1"), of("other")), (Some(WINDOW_MS_MAX), Some(1000), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("window_s = 0", "idempotency.window_s must be from 1 to 7776000 seconds"),
            ("window_s = 7776001", "idempotency.window_s must be"),
            ("[tenants]\nacme = 0", "idempotency.tenants.acme must be"),
            ("[tenants]\n\"\" = 5", "is not a tenant"),
            ("window = 5", "window"),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
