//! The cost of a decision as the cluster grows, and the cost of each part of a review. `benches/review.rs` measures the
//! CPU time per review over real TLS.

use std::collections::BTreeSet;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use vramguard::capacity::admission;
use vramguard::capacity::cluster::Cluster;
use vramguard::capacity::gpu::Rules;
use vramguard::capacity::policy::{ClusterPolicy, Documents, OnShortfall, Policies};
use vramguard::k8s::object::{NodeObject, PodObject};
use vramguard::k8s::{node, patch, pod, review};

mod snapshot;

/// A cluster with this number of pods, 20 on each node.
fn cluster(pods: usize) -> Cluster {
    let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
    for number in 0..pods.div_ceil(20) {
        let object: NodeObject = serde_json::from_value(snapshot::node(&format!("n{number}"))).expect("a node");
        cluster.apply_node(object.name(), node::facts(&object, &[]));
    }
    for number in 0..pods {
        let object: PodObject = serde_json::from_value(snapshot::bound(number, number / 20)).expect("a pod");
        let (uid, node, holder) = pod::holder(&object).expect("it holds");
        cluster.apply_pod(&uid, &node, holder);
    }
    cluster
}

fn policies(on_shortfall: OnShortfall) -> Policies {
    let mut cluster = ClusterPolicy::default();
    cluster.layer.on_shortfall = Some(on_shortfall);
    Policies::new(&Documents { cluster: Some(cluster), ..Documents::default() }, "vramguard-system")
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    let object: PodObject = serde_json::from_value(snapshot::created()).expect("a pod");
    let asks = pod::translate(&object, Some("ml"), None);
    for pods in [100, 1_000, 10_000, 100_000] {
        let cluster = cluster(pods);
        for on_shortfall in [OnShortfall::Wait, OnShortfall::Deny] {
            let policies = policies(on_shortfall);
            let policy = policies.of("ml").expect("not exempt");
            group.bench_function(BenchmarkId::new(format!("{on_shortfall:?}"), pods), |bencher| {
                bencher.iter(|| admission::judge(black_box(&asks), policy, &[], &cluster));
            });
        }
    }
    group.finish();
}

fn parts(criterion: &mut Criterion) {
    let body = snapshot::review();
    println!("review body: {} bytes", body.len());
    let cluster = cluster(1_000);
    let policies = policies(OnShortfall::Wait);
    let policy = policies.of("ml").expect("not exempt");
    let request = review::read(&body).expect("a review");
    let object = request.created_pod().expect("of a pod");
    let asks = pod::translate(object, Some("ml"), None);
    let mut group = criterion.benchmark_group("review");
    group.bench_function("parse", |bencher| {
        bencher.iter(|| review::read::<PodObject>(black_box(&body)).expect("a review"))
    });
    group.bench_function("translate", |bencher| bencher.iter(|| pod::translate(black_box(object), Some("ml"), None)));
    group.bench_function("decide", |bencher| {
        bencher.iter(|| admission::assess(black_box(&asks), policy, &cluster).changes())
    });
    let changes = admission::assess(&asks, policy, &cluster).changes();
    group.bench_function("patch", |bencher| bencher.iter(|| patch::operations(black_box(object), &changes)));
    group.bench_function("answer", |bencher| {
        let operations = patch::operations(object, &changes);
        bencher.iter(|| {
            let answer = review::Answer::mutated("u".into(), black_box(&operations), &changes);
            serde_json::to_vec(&answer).expect("JSON")
        });
    });
    group.finish();
}

criterion_group!(benches, decisions, parts);
criterion_main!(benches);
