# Recipes for developers. `just` without a recipe lists them.

_default:
    @just --list

# Runs the demo on an embedded example cluster, without Kubernetes or a GPU; takes less than a minute once built
demo:
    cargo run --release -- demo

# Runs everything that CI runs, with tests on a real control plane
test:
    .ci/run

# Runs the unit tests only, in seconds and without a cluster
quick:
    cargo test --lib

# Visits every state of the larger models of the binding protocol; run it after a change of the protocol
model:
    cargo test --locked --lib -- --ignored --nocapture larger_worlds

# Measures the memory of audits at the bounds of the server, alone in its process
audit-memory:
    cargo test --locked --lib -- --ignored --nocapture memory_of_full_audits

# Checks the pure tiers alone, without the crates of the shells
pure:
    cargo check --no-default-features --lib

# Runs the chaos tests: bursts, two schedulers, replicas that die and hang; VRAMGUARD_SEED repeats a run
chaos rounds="3":
    VRAMGUARD_ROUNDS={{ rounds }} cargo test --locked --test it -- --ignored --nocapture chaos::

# Steers 280 pods of mixed demands on a real kubelet through random faults of its parts: some minutes; VRAMGUARD_SEED repeats a run
steering:
    cargo test --locked --test it -- --ignored --nocapture steering::long

# Takes over an unchanged device plugin on a real kubelet 1.37, which is built once: five minutes, and some more for the build
takeover:
    VRAMGUARD_KUBELET="$(tests/controlplane/newer-kubelet/build)/kubelet" \
        cargo test --locked --test it -- --ignored --nocapture steering::takeover

# Attacks a server under the shipped memory limit, alone and on a control plane with 5,000 nodes: some ten minutes
hostile nodes="5000":
    VRAMGUARD_NODES={{ nodes }} cargo test --release --locked --test it -- --include-ignored --nocapture --test-threads 1 hostile::

# Runs the benchmarks; docs/benchmarks.md explains the figures
bench *args:
    cargo bench {{ args }}

# Measures a cluster with and without the guard, on a real control plane: some twenty minutes
figures which="":
    cargo test --release --locked --test it -- --ignored --nocapture figures::{{ which }}

# Measures the node agent with 100 processes while it steers, and fails above its limits: two minutes
agent-cost:
    cargo test --release --locked --test it -- --ignored --nocapture agent::cost

# Formats the code
fmt:
    cargo fmt

# Runs the lints as CI does: a warning is an error
clippy:
    cargo clippy --all-targets --locked -- -D warnings

# Builds the documentation of the crate, with private items
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Checks licences, bans, sources and known vulnerabilities of the dependencies; installs cargo-deny into the cache
deny:
    .ci/check deny advisories

# Checks the spelling; installs typos into the cache
typos:
    .ci/check typos

# Checks links, anchors and paths in the Markdown files, and the map of ARCHITECTURE.md against the tree
links:
    cargo test --locked --test it -- docs::

# Writes the CustomResourceDefinitions of the policies from their types; run it after a change of a field
crds:
    VRAMGUARD_WRITE_CRDS=1 cargo test --locked --lib -- crd::

# Builds the control plane for the tests, once, and prints its folder
controlplane:
    tests/controlplane/build

# Prints the objects that `kubectl apply -k` sends
render overlay="deploy":
    kubectl kustomize {{ overlay }}

# Serves a snapshot of a cluster (kubectl get nodes,pods -A -o yaml) with a self-signed certificate
serve snapshot:
    cargo run -- serve --policies policies --snapshot {{ snapshot }} --cert-dir certs/dev --self-signed

# Builds the container image (needs a container engine)
image tag="vramguard:dev":
    cargo build --profile dist --locked
    docker build -t {{ tag }} .
