# Short names for what CONTRIBUTING.md says; each is one command that runs without just as well.

# List the recipes
default:
    @just --list

# Run the tests that answer within a minute
fast *ARGS:
    tests/run --fast {{ARGS}}

# Run every test
test *ARGS:
    tests/run {{ARGS}}

# Check format, lints and the library's documentation
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# Write the golden pages and the generated documents
docs:
    HEADROOM_UPDATE_DOCS=1 tests/run --fast
    HEADROOM_UPDATE_DOCS=1 cargo test --test deploy

# Run the exporter on this machine: http://localhost:10843/metrics
run *ARGS:
    cargo run --release --bin headroom-exporter -- {{ARGS}}
