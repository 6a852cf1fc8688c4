//! The walls between the crates, checked over `cargo metadata` and over the sources.
//!
//! The rules are those of `docs/ARCHITECTURE.md`. Each rule is a pure function from a small description of the
//! workspace to a list of violations, so that each can be shown a planted violation as well as the real workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// How one package needs another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Normal,
    Build,
    Dev,
}

/// A workspace package, as far as the walls are concerned.
#[derive(Clone, Debug, Default)]
struct Package {
    name: String,
    /// Direct dependencies.
    needs: BTreeSet<(String, Need)>,
    /// Everything reached over normal and build edges, the direct ones included.
    reaches: BTreeSet<String>,
    features: BTreeSet<String>,
    /// The text of its manifest.
    manifest: String,
}

/// A source file: its path from the workspace root, and its text.
#[derive(Clone, Debug)]
struct Source {
    path: String,
    text: String,
}

const LINES_MAX: usize = 800;

/// Packages that drive the world: none of them may be seen from the pure layers.
const RUNTIMES: &[&str] = &["tokio", "hyper", "diesel", "redis", "axum", "fastwebsockets"];
const DATABASES: &[&str] = &[
    "diesel",
    "diesel_migrations",
    "diesel-async",
    "libsqlite3-sys",
    "rusqlite",
    "deadpool-redis",
    "redis",
    "tokio-postgres",
];
const WIRES: &[&str] = &["hyper", "hyper-util", "axum", "tower-http", "fastwebsockets"];
const WIRE_FORMATS: &[&str] = &["serde", "serde_derive", "serde_json", "rmp-serde", "rmp"];

/// The layer of a workspace package; `None` for a package that the drawing does not know.
fn layer(name: &str) -> Option<u8> {
    Some(match name {
        "driftline-model" => 0,
        "driftline-protocol"
        | "driftline-conflict"
        | "driftline-idempotency"
        | "driftline-uploads"
        | "driftline-realtime"
        | "driftline-insight" => 1,
        "driftline-engine" => 2,
        "driftline-transport" | "driftline-storage" | "driftline-client" => 3,
        "driftline-testkit" => 4,
        "driftline-server" | "driftline-bench" | "driftline-benches" | "driftline-examples" => 5,
        "driftline-fuzz" => 6,
        _ => return None,
    })
}

/// Every package has a place, and a dependency points to a lower layer.
fn upward_dependencies(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        let Some(own) = layer(&package.name) else {
            found.push(format!("{} has no place in the layers", package.name));
            continue;
        };
        for (need, how) in &package.needs {
            let Some(other) = layer(need) else { continue };
            // Dev-dependencies of the pure domains obey the walls too: each is useful, and tested, alone.
            let bound = *how != Need::Dev || own <= 1;
            if bound && other >= own {
                found.push(format!("{} (L{own}) depends on {need} (L{other})", package.name));
            }
        }
    }
    found
}

/// The domain crates do not know each other, not even in their tests.
fn domain_siblings(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, _| layer(package) == Some(1) && layer(need) == Some(1))
}

/// The foundation knows no other crate of the workspace.
fn model_dependencies(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, _| package == "driftline-model" && need.starts_with("driftline-"))
}

/// Nothing that drives the world is seen from the pure layers.
fn runtimes_in_pure_layers(packages: &[Package]) -> Vec<String> {
    let mut found = direct(packages, |package, need, how| {
        layer(package).is_some_and(|own| own <= 2) && how != Need::Dev && RUNTIMES.contains(&need)
    });
    for package in packages.iter().filter(|package| layer(&package.name).is_some_and(|own| own <= 1)) {
        let hidden = RUNTIMES.iter().filter(|name| package.reaches.contains(**name));
        found.extend(hidden.map(|name| format!("{} reaches {name}", package.name)));
    }
    found
}

/// Only `storage` knows a database; the load tool reads rows of its own beside it, as a plain program would.
fn databases_outside_storage(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, how| {
        let plain = package == "driftline-bench" && how == Need::Normal && need == "diesel";
        package != "driftline-storage" && !plain && DATABASES.contains(&need)
    })
}

/// Only `transport` serves HTTP and frames; what speaks to a server from outside may dial, and the layer of `idempotency`
/// and the crate `uploads` are shown and tested in somebody else's service.
fn wires_outside_transport(packages: &[Package]) -> Vec<String> {
    let may = ["driftline-transport", "driftline-client", "driftline-bench", "driftline-testkit"];
    direct(packages, |package, need, how| {
        let shown = ["driftline-idempotency", "driftline-uploads"].contains(&package) && how == Need::Dev;
        !may.contains(&package) && !shown && WIRES.contains(&need)
    })
}

/// Only `protocol` knows the wire formats: domain types are converted at the edge.
fn formats_outside_protocol(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, how| {
        let pure = layer(package).is_some_and(|own| own <= 2) && package != "driftline-protocol";
        pure && how != Need::Dev && WIRE_FORMATS.contains(&need)
    })
}

/// A handler translates and calls the engine: it merges nothing and stores nothing itself.
fn transport_reaching_past_engine(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, how| {
        let past = ["driftline-conflict", "driftline-storage"];
        package == "driftline-transport" && how != Need::Dev && past.contains(&need)
    })
}

/// The test kit never gets into what is shipped.
fn testkit_in_products(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, how| {
        let test_only = package == "driftline-examples" || package == "driftline-benches";
        need == "driftline-testkit" && how != Need::Dev && !test_only
    })
}

/// What fuzzes is seen by nothing, so that what it needs gets into no build but its own.
fn fuzzing_elsewhere(packages: &[Package]) -> Vec<String> {
    direct(packages, |package, need, _| {
        need == "driftline-fuzz" || (need == "libfuzzer-sys" && package != "driftline-fuzz")
    })
}

/// Features only add: none takes away, none chooses a backend.
fn subtracting_features(packages: &[Package]) -> Vec<String> {
    let backends = ["sqlite", "postgres", "postgresql", "memory", "redis"];
    let mut found = Vec::new();
    for package in packages {
        for feature in &package.features {
            if ["no-", "no_", "without-", "disable-"].iter().any(|prefix| feature.starts_with(prefix)) {
                found.push(format!("{}: feature {feature} takes away", package.name));
            }
            if backends.contains(&feature.as_str()) {
                found.push(format!("{}: feature {feature} chooses a backend", package.name));
            }
        }
    }
    found
}

/// Every package takes the lints of the workspace, and these forbid unsafe code.
fn missing_lints(root_manifest: &str, packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    let lints = section(root_manifest, "workspace.lints.rust");
    if !lints.iter().any(|line| line == "unsafe_code=\"forbid\"") {
        found.push("the workspace does not forbid unsafe code".to_owned());
    }
    for package in packages {
        let own = section(&package.manifest, "lints");
        let dotted = section(&package.manifest, "").contains(&"lints.workspace=true".to_owned());
        if !dotted && !own.contains(&"workspace=true".to_owned()) {
            found.push(format!("{} does not take the lints of the workspace", package.name));
        }
    }
    found
}

/// The lines of one table of a manifest, without spaces and comments.
fn section(manifest: &str, name: &str) -> Vec<String> {
    let mut inside = name.is_empty();
    let mut lines = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            inside = header.trim_end_matches(']') == name;
        } else if inside && !line.starts_with('#') {
            lines.push(line.chars().filter(|c| !c.is_whitespace()).collect());
        }
    }
    lines
}

/// The pure layers read no clock, draw no random number and open nothing.
fn impure_sources(sources: &[Source]) -> Vec<String> {
    const PURE: &[&str] = &["model", "protocol", "conflict", "idempotency", "insight", "realtime", "engine"];
    const WORDS: &[&str] = &[
        "SystemTime::now",
        "Instant::now",
        "std::fs",
        "std::net",
        "thread::spawn",
        "thread::Builder",
        "getrandom",
    ];
    let pure = |path: &str| PURE.iter().any(|name| path.starts_with(&format!("crates/{name}/src/")));
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| pure(&source.path)) {
        for (number, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            let hits = WORDS.iter().filter(|word| line.contains(**word));
            found.extend(hits.map(|word| format!("{}:{}: {word}", source.path, number + 1)));
        }
        let grouped = grouped_std_imports(&source.text);
        let hits = ["fs", "net"].into_iter().filter(|word| grouped.contains(word));
        found.extend(hits.map(|word| format!("{}: std::{{{word}}}", source.path)));
    }
    found
}

/// The words inside `use std::{...};`.
fn grouped_std_imports(text: &str) -> BTreeSet<&str> {
    text.split("use std::{")
        .skip(1)
        .filter_map(|rest| rest.split(';').next())
        .flat_map(|group| group.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .collect()
}

/// A feature that is off changes nothing that is on: no code exists only without one.
fn code_without_a_feature(sources: &[Source]) -> Vec<String> {
    let needle = ["not(", "feature"].concat();
    let hits = sources.iter().filter(|source| source.text.contains(&needle));
    hits.map(|source| format!("{}: code that exists only without a feature", source.path)).collect()
}

/// No file grows beyond what one can keep in mind.
fn long_files(sources: &[Source]) -> Vec<String> {
    let lines = |source: &Source| source.text.lines().count();
    let long = sources.iter().filter(|source| lines(source) > LINES_MAX);
    long.map(|source| format!("{}: {} lines, at most {LINES_MAX}", source.path, lines(source))).collect()
}

fn direct(packages: &[Package], refused: impl Fn(&str, &str, Need) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        for (need, how) in &package.needs {
            if refused(&package.name, need, *how) {
                found.push(format!("{} depends on {need} ({how:?})", package.name));
            }
        }
    }
    found
}

// The real workspace.

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the workspace is two folders up")
}

fn workspace() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    packages(&serde_json::from_slice(&output.stdout).expect("cargo prints JSON"))
}

fn packages(metadata: &Value) -> Vec<Package> {
    let mut names = BTreeMap::new();
    for package in list(&metadata["packages"]) {
        names.insert(text(&package["id"]), package);
    }
    let mut edges: BTreeMap<&str, Vec<(&str, BTreeSet<Need>)>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let needs = list(&node["deps"]).iter().map(|dep| (text(&dep["pkg"]), needs(dep))).collect();
        edges.insert(text(&node["id"]), needs);
    }
    let members = list(&metadata["workspace_members"]).iter().map(text);
    members.map(|id| package(id, &names, &edges)).collect()
}

fn package(
    id: &str,
    names: &BTreeMap<&str, &Value>,
    edges: &BTreeMap<&str, Vec<(&str, BTreeSet<Need>)>>,
) -> Package {
    let own = names[id];
    let mut direct = BTreeSet::new();
    for (need, hows) in &edges[id] {
        direct.extend(hows.iter().map(|how| (text(&names[need]["name"]).to_owned(), *how)));
    }
    let mut reached = BTreeSet::new();
    let mut open = vec![id];
    while let Some(id) = open.pop() {
        for (need, hows) in &edges[id] {
            let shipped = hows.iter().any(|how| *how != Need::Dev);
            if shipped && reached.insert(*need) {
                open.push(need);
            }
        }
    }
    Package {
        name: text(&own["name"]).to_owned(),
        needs: direct,
        reaches: reached.into_iter().map(|id| text(&names[id]["name"]).to_owned()).collect(),
        features: own["features"].as_object().expect("features").keys().cloned().collect(),
        manifest: std::fs::read_to_string(text(&own["manifest_path"])).expect("a manifest is readable"),
    }
}

fn needs(dep: &Value) -> BTreeSet<Need> {
    let kinds = list(&dep["dep_kinds"]).iter();
    kinds
        .map(|kind| match kind["kind"].as_str() {
            None => Need::Normal,
            Some("build") => Need::Build,
            Some(_) => Need::Dev,
        })
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut open = ["crates", "bins", "benches", "examples"].map(|name| root.join(name)).to_vec();
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry is readable").path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if is_source(&path) {
                let text = std::fs::read_to_string(&path).expect("a source is UTF-8");
                let path = path.strip_prefix(&root).expect("it is below the root");
                found.push(Source { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn is_source(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("rs" | "py" | "sh" | "sql"))
}

#[track_caller]
fn check(violations: &[String]) {
    assert!(violations.is_empty(), "walls broken:\n  {}", violations.join("\n  "));
}

#[test]
fn dependencies_keep_the_walls() {
    let packages = workspace();
    assert!(packages.iter().any(|package| package.name == "driftline-model"), "the workspace was read");
    check(&upward_dependencies(&packages));
    check(&domain_siblings(&packages));
    check(&model_dependencies(&packages));
    check(&runtimes_in_pure_layers(&packages));
    check(&databases_outside_storage(&packages));
    check(&wires_outside_transport(&packages));
    check(&formats_outside_protocol(&packages));
    check(&transport_reaching_past_engine(&packages));
    check(&testkit_in_products(&packages));
    check(&fuzzing_elsewhere(&packages));
    check(&subtracting_features(&packages));
}

#[test]
fn every_package_takes_the_lints() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the root manifest is readable");
    check(&missing_lints(&manifest, &workspace()));
}

#[test]
fn sources_keep_the_walls() {
    let sources = sources();
    for name in ["model", "protocol", "conflict", "idempotency", "insight", "realtime", "engine"] {
        let folder = format!("crates/{name}/src/");
        assert!(sources.iter().any(|source| source.path.starts_with(&folder)), "no sources in {folder}");
    }
    check(&impure_sources(&sources));
    check(&code_without_a_feature(&sources));
    check(&long_files(&sources));
}

// Planted violations: a rule that reports none of these is no rule.

fn planted(name: &str, needs: &[(&str, Need)]) -> Vec<Package> {
    let needs = needs.iter().map(|(name, how)| ((*name).to_owned(), *how)).collect();
    vec![Package { name: name.to_owned(), needs, ..Package::default() }]
}

fn planted_source(path: &str, text: &str) -> Vec<Source> {
    vec![Source { path: path.to_owned(), text: text.to_owned() }]
}

#[test]
fn planted_dependencies_are_reported() {
    use Need::{Build, Dev, Normal};
    type Rule = fn(&[Package]) -> Vec<String>;
    // (rule, package, its dependency, whether the rule must report it)
    let table: &[(Rule, &str, (&str, Need), bool)] = &[
        (upward_dependencies, "driftline-engine", ("driftline-storage", Normal), true),
        (upward_dependencies, "driftline-engine", ("driftline-storage", Dev), false),
        (upward_dependencies, "driftline-engine", ("driftline-conflict", Normal), false),
        (upward_dependencies, "driftline-transport", ("driftline-storage", Normal), true),
        (upward_dependencies, "driftline-model", ("driftline-testkit", Dev), true),
        (upward_dependencies, "driftline-stray", ("serde", Normal), true),
        (domain_siblings, "driftline-conflict", ("driftline-protocol", Normal), true),
        (domain_siblings, "driftline-conflict", ("driftline-protocol", Dev), true),
        (domain_siblings, "driftline-conflict", ("driftline-model", Normal), false),
        (domain_siblings, "driftline-insight", ("driftline-conflict", Normal), true),
        (model_dependencies, "driftline-model", ("driftline-conflict", Build), true),
        (runtimes_in_pure_layers, "driftline-engine", ("tokio", Normal), true),
        (runtimes_in_pure_layers, "driftline-engine", ("tokio", Dev), false),
        (runtimes_in_pure_layers, "driftline-transport", ("tokio", Normal), false),
        (databases_outside_storage, "driftline-server", ("diesel", Normal), true),
        (databases_outside_storage, "driftline-testkit", ("libsqlite3-sys", Dev), true),
        (databases_outside_storage, "driftline-storage", ("diesel", Normal), false),
        (databases_outside_storage, "driftline-bench", ("diesel", Normal), false),
        (databases_outside_storage, "driftline-bench", ("diesel-async", Normal), true),
        (wires_outside_transport, "driftline-server", ("axum", Normal), true),
        (wires_outside_transport, "driftline-idempotency", ("axum", Normal), true),
        (wires_outside_transport, "driftline-idempotency", ("axum", Dev), false),
        (wires_outside_transport, "driftline-conflict", ("axum", Dev), true),
        (wires_outside_transport, "driftline-client", ("fastwebsockets", Normal), false),
        (formats_outside_protocol, "driftline-conflict", ("serde", Normal), true),
        (formats_outside_protocol, "driftline-protocol", ("serde_json", Normal), false),
        (transport_reaching_past_engine, "driftline-transport", ("driftline-conflict", Normal), true),
        (transport_reaching_past_engine, "driftline-transport", ("driftline-storage", Dev), false),
        (testkit_in_products, "driftline-server", ("driftline-testkit", Normal), true),
        (testkit_in_products, "driftline-server", ("driftline-testkit", Dev), false),
        (fuzzing_elsewhere, "driftline-bench", ("driftline-fuzz", Dev), true),
        (fuzzing_elsewhere, "driftline-protocol", ("libfuzzer-sys", Normal), true),
        (fuzzing_elsewhere, "driftline-fuzz", ("libfuzzer-sys", Normal), false),
    ];
    for (rule, package, need, reported) in table {
        let violations = rule(&planted(package, &[*need]));
        assert_eq!(!violations.is_empty(), *reported, "{package} with {need:?}: {violations:?}");
    }
}

#[test]
fn planted_transitive_runtime_is_reported() {
    let mut packages = planted("driftline-conflict", &[("innocent", Need::Normal)]);
    check(&runtimes_in_pure_layers(&packages));
    packages[0].reaches.insert("tokio".to_owned());
    assert_eq!(runtimes_in_pure_layers(&packages), ["driftline-conflict reaches tokio"]);
}

#[test]
fn planted_metadata_is_read() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let metadata = serde_json::json!({
        "packages": [
            {"id": "a", "name": "driftline-conflict", "features": {"no-audit": []}, "manifest_path": manifest},
            {"id": "b", "name": "innocent", "features": {}, "manifest_path": manifest},
            {"id": "c", "name": "tokio", "features": {}, "manifest_path": manifest},
            {"id": "d", "name": "proptest", "features": {}, "manifest_path": manifest},
        ],
        "workspace_members": ["a"],
        "resolve": {"nodes": [
            {"id": "a", "deps": [
                {"pkg": "b", "dep_kinds": [{"kind": null}]},
                {"pkg": "d", "dep_kinds": [{"kind": "dev"}]},
            ]},
            {"id": "b", "deps": [{"pkg": "c", "dep_kinds": [{"kind": "build"}]}]},
            {"id": "c", "deps": []},
            {"id": "d", "deps": []},
        ]},
    });
    let packages = packages(&metadata);
    let needs = [("innocent".to_owned(), Need::Normal), ("proptest".to_owned(), Need::Dev)];
    assert_eq!(packages[0].needs, BTreeSet::from(needs));
    assert_eq!(packages[0].reaches, BTreeSet::from(["innocent".to_owned(), "tokio".to_owned()]));
    assert_eq!(runtimes_in_pure_layers(&packages).len(), 1);
    assert_eq!(subtracting_features(&packages), ["driftline-conflict: feature no-audit takes away"]);
}

#[test]
fn planted_feature_is_reported() {
    let mut packages = planted("driftline-storage", &[]);
    check(&subtracting_features(&packages));
    packages[0].features.insert("postgres".to_owned());
    assert_eq!(subtracting_features(&packages).len(), 1);
}

#[test]
fn planted_missing_lints_are_reported() {
    let root = "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n";
    let mut packages = planted("driftline-model", &[]);
    for (manifest, violations) in [
        ("[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n", 0),
        ("lints.workspace = true\n[package]\nname = \"x\"\n", 0),
        ("[package]\nname = \"x\"\nedition.workspace = true\n", 1),
        ("[package]\nname = \"x\"\n\n[lints]\n# workspace = true\n", 1),
    ] {
        packages[0].manifest = manifest.to_owned();
        assert_eq!(missing_lints(root, &packages).len(), violations, "{manifest}");
    }
    packages[0].manifest = "[lints]\nworkspace = true\n".to_owned();
    assert_eq!(missing_lints("[workspace.lints.rust]\nunsafe_code = \"warn\"\n", &packages).len(), 1);
}

#[test]
fn planted_impure_sources_are_reported() {
    let inside = "crates/engine/src/session.rs";
    for (path, text, violations) in [
        (inside, "let now = std::time::SystemTime::now();", 1),
        (inside, "    let now = Instant::now();", 1),
        (inside, "use std::fs;", 1),
        (inside, "use std::{\n    collections::BTreeMap,\n    fs::File,\n};", 1),
        (inside, "use std::{collections::BTreeMap, fmt};", 0),
        (inside, "/// Reads no clock: `Instant::now` is the shell's.", 0),
        (inside, "std::thread::spawn(|| ());", 1),
        ("crates/model/src/id.rs", "getrandom::fill(&mut bytes)", 1),
        ("crates/transport/src/clock.rs", "SystemTime::now()", 0),
        ("crates/engine/tests/session.rs", "std::net::TcpListener::bind(at)", 0),
    ] {
        let found = impure_sources(&planted_source(path, text));
        assert_eq!(found.len(), violations, "{path}: {text}: {found:?}");
    }
}

#[test]
fn planted_subtracting_code_is_reported() {
    let text = ["#[cfg(not(", "feature = \"audit\"))]"].concat();
    assert_eq!(code_without_a_feature(&planted_source("crates/engine/src/plan.rs", &text)).len(), 1);
    let text = "#[cfg(feature = \"audit\")]";
    check(&code_without_a_feature(&planted_source("crates/engine/src/plan.rs", text)));
}

#[test]
fn planted_long_file_is_reported() {
    let text = "// a line\n".repeat(LINES_MAX);
    check(&long_files(&planted_source("crates/engine/src/plan.rs", &text)));
    let text = format!("{text}// one more\n");
    assert_eq!(long_files(&planted_source("crates/engine/src/plan.rs", &text)).len(), 1);
}
