//! The fuzzing program: libFuzzer drives the target that `DRIFTLINE_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use driftline_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("DRIFTLINE_FUZZ_TARGET").unwrap_or_default();
    Target::find(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("DRIFTLINE_FUZZ_TARGET is {name:?}; there is {}", names.join(", "));
        std::process::exit(2);
    })
});

fuzz_target!(|input: &[u8]| {
    (TARGET.run)(input);
});
