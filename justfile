# Each recipe is a thin call; continuous integration runs the same ones.

# List the recipes.
default:
    @just --list

# Check the formatting.
fmt:
    cargo fmt --all --check

# Lint every target; a warning fails.
lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Install what the tests need and run all of them.
test:
    ./scripts/test

# Build the documentation; a warning fails.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Check the walls between the crates.
walls:
    cargo test --locked -p driftline-testkit --test walls

# Check licences, advisories, bans and sources.
deny:
    cargo deny --locked check

# Run the micro-benches.
bench *ARGS:
    cargo bench --workspace --locked {{ARGS}}

# Drive a running server: `just load sync --url ws://127.0.0.1:8000 ...`.
load *ARGS:
    cargo run --release --locked -p driftline-bench -- load {{ARGS}}

# Fuzz what reads bytes from outside: `just fuzz`, or `just fuzz config names`.
fuzz *ARGS:
    ./scripts/fuzz {{ARGS}}

# What continuous integration runs.
ci:
    ./.ci/run
