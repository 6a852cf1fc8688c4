//! What PostgreSQL and S3 share of TLS: one crypto library, and the authorities that this machine trusts.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Returns the authorities that this machine trusts; a machine may have none.
pub(crate) fn native_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // What cannot be read proves nobody's identity; the rest still does.
    let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Makes what a client needs, with the crypto library that is named here and never another one of the process.
pub(crate) fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
