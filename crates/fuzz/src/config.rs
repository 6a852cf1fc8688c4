//! The configuration file.

use driftline_server::Config;

use crate::target::Verdict;

/// Reads a configuration, its limits and its catalogue.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let Ok(config) = Config::parse(text) else { return Verdict::Refused };
    let limits = config.limits();
    if let Ok(limits) = &limits {
        assert!(limits.batch_items > 0 && limits.message_bytes > 0, "no limit that can be set is zero");
    }
    // The fuzzer must not reach files of the machine through a path that it made up.
    if config.names_files() {
        return Verdict::Refused;
    }
    let (strict, open) = (config.catalogue(false), config.catalogue(true));
    assert_eq!(strict.is_ok(), open.is_ok(), "what else is accepted does not concern the declared kinds");
    if let (Ok(strict), Ok(open)) = (&strict, &open) {
        let kinds: Vec<_> = strict.declared().map(|(name, _)| name.clone()).collect();
        assert!(open.declared().map(|(name, _)| name).eq(&kinds), "the same kinds are declared");
        for name in &kinds {
            assert!(!name.as_str().starts_with('$'), "the server's own names are not declared");
            assert!(strict.kind(name).is_some(), "a declared kind is found");
        }
    }
    Verdict::of(limits.is_ok() && strict.is_ok())
}
