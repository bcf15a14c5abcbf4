# Recipes for people. `just` alone lists them.

_default:
    @just --list

# The whole story on an embedded picture of a cluster; no Kubernetes, no GPU, under a minute once built
demo:
    cargo run --release -- demo

# Everything that CI runs, the real control plane included
test:
    .ci/run

# Unit tests only: seconds, no cluster
quick:
    cargo test --lib

# The pure tiers alone, without the crates that talk
pure:
    cargo check --no-default-features --lib

# Bursts, two schedulers, replicas that die and hang; VRAMGUARD_SEED repeats a run
chaos rounds="3":
    VRAMGUARD_ROUNDS={{ rounds }} cargo test --locked --test it -- --ignored --nocapture chaos::

# Attacks with the shipped memory limit, on the server alone and on a control plane with 5,000 nodes: some ten minutes
hostile nodes="5000":
    VRAMGUARD_NODES={{ nodes }} cargo test --release --locked --test it -- --include-ignored --nocapture --test-threads 1 hostile::

# Numbers; what they mean is in docs/benchmarks.md
bench *args:
    cargo bench {{ args }}

# Figures of a guarded cluster beside one without the guard, on the real control plane: some twenty minutes
figures which="":
    cargo test --release --locked --test it -- --ignored --nocapture figures::{{ which }}

fmt:
    cargo fmt

# Lints as CI has them: a warning is an error
clippy:
    cargo clippy --all-targets --locked -- -D warnings

# Documentation of the crate, private items included
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Licences, bans, sources, advisories (cargo install cargo-deny)
deny:
    cargo deny check

# Builds the control plane for the tests, once, and prints where it is
controlplane:
    tests/controlplane/build

# What `kubectl apply -k` would send
render overlay="deploy":
    kubectl kustomize {{ overlay }}

# Serves a picture of a cluster (kubectl get nodes,pods,deployments,hpa -A -o yaml) with a certificate made for it
serve snapshot:
    cargo run -- serve --policies policies --snapshot {{ snapshot }} --cert-dir certs/dev --self-signed

# The container image, from a release build (needs a container engine)
image tag="vramguard:dev":
    cargo build --release --locked
    docker build -t {{ tag }} .
