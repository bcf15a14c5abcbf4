//! The page that Prometheus scrapes.

use serde_json::json;

use super::*;

/// Metrics of a cluster of nodes with eight GPUs each, all in mode slot.
fn metrics_of(nodes: usize) -> Metrics {
    let policies = Arc::new(PolicyStore::new(&Vec::new(), "own").unwrap());
    let index = Arc::new(Index::new(*policies.current().policies.rules(), Vec::new()));
    for number in 0..nodes {
        let node = json!({
            "metadata": { "name": format!("gpu-node-{number:05}.europe-west4-a.example.internal"), "labels": {
                "nvidia.com/gpu.memory": "81920", "nvidia.com/gpu.count": "8", "nvidia.com/gpu.replicas": "4",
                "nvidia.com/gpu.sharing-strategy": "time-slicing",
            } },
            "status": { "capacity": { "nvidia.com/gpu": "32" } },
        });
        index.apply_node(&serde_json::from_value(node).unwrap());
    }
    Metrics::new(index, policies, Arc::default())
}

async fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.scrape().await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_scrape_of_five_thousand_nodes_of_eight_gpus_is_at_most_5_mb() {
    let metrics = metrics_of(5_000);
    let length = metrics.scrape().await.unwrap().len();
    assert!((1_000_000..=5_000_000).contains(&length), "{length} bytes");
}

#[tokio::test]
async fn each_gpu_is_named_only_where_that_is_asked_for() {
    let of_gpus = |text: &str| text.lines().filter(|line| line.starts_with("vramguard_gpu_")).count();
    assert_eq!(of_gpus(&text(&metrics_of(3)).await), 0);
    assert_eq!(of_gpus(&text(&metrics_of(3).with_detail(Detail::Gpus)).await), 3 * 8 * 3, "total, allocatable, held");
}

#[tokio::test]
async fn scrapers_that_come_together_share_what_is_rendered() {
    let metrics = metrics_of(1_000);
    let scrapes = futures::future::join_all((0..8).map(|_| metrics.scrape())).await;
    let texts: std::collections::BTreeSet<*const u8> = scrapes.iter().map(|s| s.as_ref().unwrap().as_ptr()).collect();
    assert_eq!(texts.len(), 2, "the first one's, and one for all who came while it was rendered");
    assert!(metrics.rendered.lock().await.is_none(), "nothing is kept for nobody");
}

#[tokio::test]
async fn a_scrape_shows_what_happened_before_it_was_asked_for() {
    let metrics = metrics_of(1);
    let (first, second) = tokio::join!(text(&metrics), async {
        metrics.refused_body();
        text(&metrics).await
    });
    assert!(first.ends_with("# EOF\n"));
    assert!(second.contains("vramguard_refused_bodies_total 1\n"), "{second}");
}

#[tokio::test]
async fn the_age_of_each_watch_is_known_once_something_was_heard() {
    let metrics = metrics_of(1);
    let ages = |text: &str| text.lines().filter(|line| line.starts_with("vramguard_watch_age_seconds{")).count();
    assert_eq!(ages(&text(&metrics).await), 0);
    metrics.index.heard(Kind::Pods);
    let text = text(&metrics).await;
    assert_eq!(ages(&text), 1);
    assert!(text.contains("vramguard_watch_age_seconds{kind=\"pods\"} 0."), "{text}");
}

#[tokio::test]
async fn what_an_audit_does_not_know_has_no_sample() {
    let metrics = metrics_of(0);
    let samples = async |metrics: &Metrics| {
        let text = text(metrics).await;
        let lines = text.lines().filter(|line| line.starts_with("vramguard_audit_"));
        lines.filter(|line| !line.contains("failures")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(samples(&metrics).await.is_empty(), "before the first audit");
    let mut report = Report::default();
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    metrics.audited(Some((&report, at)));
    let known = ["vramguard_audit_overcommitted_bytes 0", "vramguard_audit_last_success_timestamp_seconds 1700000000"];
    assert_eq!(samples(&metrics).await, known);
    report.summary.stranded_mib = Some(2);
    metrics.audited(Some((&report, at)));
    let seen = samples(&metrics).await;
    assert!(seen.contains(&"vramguard_audit_stranded_bytes 2097152".to_owned()), "{seen:?}");
    metrics.audited(None);
    assert!(samples(&metrics).await.is_empty(), "another replica leads");
}

#[tokio::test]
async fn forged_namespaces_do_not_add_up() {
    let metrics = metrics_of(0);
    for number in 0..MAX_ANSWERS * 2 {
        let answered = Answered {
            webhook: "mutate",
            verdict: "allowed",
            reason: String::new(),
            namespace: format!("forged-{number}"),
        };
        metrics.answered(answered, Duration::ZERO);
    }
    let text = text(&metrics).await;
    let series = text.lines().filter(|line| line.starts_with("vramguard_reviews_total{"));
    assert_eq!(series.count(), MAX_ANSWERS + 1);
    let others = format!("namespace=\"{OTHER}\"}} {MAX_ANSWERS}");
    assert!(text.contains(&others), "the last ones are counted together");
}
