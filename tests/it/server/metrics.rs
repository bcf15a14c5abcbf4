//! The content of `/metrics`, which no client can forge.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::test_server::{ServerFiles, TestServer, pod, review};

/// One line of `/metrics` that is no comment.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Parses the OpenMetrics text format, and is strict about everything that scrapers rely on.
fn parse(text: &str) -> Result<Vec<Sample>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("the end is missing")?;
    let (mut samples, mut families, mut series) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut family = (String::new(), String::new());
    for line in body.split_terminator('\n') {
        let wrong = |what: &str| format!("{what}: {line:?}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name, rest) = (words.next(), words.next(), words.next());
            let (name, rest) = (name.ok_or_else(|| wrong("no name"))?, rest.ok_or_else(|| wrong("no text"))?);
            if kind == Some("HELP") && !families.insert(name.to_owned()) {
                return Err(wrong("a family twice"));
            }
            match kind {
                Some("HELP") => family = (name.to_owned(), String::new()),
                Some("TYPE") if family.0 == name => family.1 = rest.to_owned(),
                Some("UNIT") if family.0 == name && name.ends_with(&format!("_{rest}")) => {}
                _ => return Err(wrong("a comment out of place")),
            }
            continue;
        }
        let sample = sample(line).ok_or_else(|| wrong("not a sample"))?;
        let suffixes: &[&str] = match family.1.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => return Err(wrong("of a family without a type")),
        };
        if !suffixes.iter().any(|suffix| sample.name == format!("{}{suffix}", family.0)) {
            return Err(wrong("outside of its family"));
        }
        if !series.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(wrong("the same series twice"));
        }
        samples.push(sample);
    }
    Ok(samples)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let valid = !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let (value, after) = quoted(after)?;
            if !valid || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = match after.strip_prefix(',') {
                Some(next) if !next.starts_with('}') => next,
                Some(_) => return None,
                None if after.starts_with('}') => after,
                None => return None,
            };
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The value of a label up to its closing quote, and the text after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c @ ('"' | '\\') => value.push(c),
                _ => return None,
            },
            c => value.push(c),
        }
    }
    None
}

fn scrape(server: &TestServer) -> Vec<Sample> {
    let answer = server.plain("/metrics");
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer has a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        head.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &&Sample| {
        let is = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|given| given == value);
        sample.name == name && labels.iter().all(is)
    };
    let found: Vec<_> = samples.iter().filter(has).collect();
    assert!(found.len() < 2, "{name} {labels:?} is ambiguous");
    Some(found.first()?.value)
}

#[test]
fn the_checker_finds_what_scrapers_stumble_over() {
    let family = "# HELP a A.\n# TYPE a gauge\n";
    for (text, good) in [
        ("a{b=\"c\"} 1\n# EOF\n", true),
        ("a{b=\"c\\\"\\n\\\\\",d=\"\"} 1.5\n# EOF\n", true),
        ("a 1\n", false),
        ("a{b=\"c\n\"} 1\n# EOF\n", false),
        ("a{b=\"c\"d\"} 1\n# EOF\n", false),
        ("a{b=\"\\x\"} 1\n# EOF\n", false),
        ("a{b=\"c\"} 1\na{b=\"c\"} 2\n# EOF\n", false),
        ("b 1\n# EOF\n", false),
        ("a one\n# EOF\n", false),
        ("# HELP a A.\n# TYPE a gauge\n# EOF\n", false),
    ] {
        assert_eq!(parse(&format!("{family}{text}")).is_ok(), good, "{text}");
    }
}

#[tokio::test]
async fn metrics_tell_of_reviews_gpus_and_the_build() {
    let mut server = ServerFiles::new().server(&["--self-signed", "--metrics-per-gpu"]);
    server.process.start();
    server.ready().await;
    let mut client = server.client().await;
    let undeclared = review(&pod("lab", json!({})));
    for _ in 0..3 {
        client.ask("/validate/pods", &undeclared).await;
    }
    client.ask("/mutate/pods", &review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" })))).await;
    _ = client.post("/mutate/pods", "no review").await.expect("an answer");

    let samples = scrape(&server);
    let reviews = |labels: &[(&str, &str)]| value(&samples, "vramguard_reviews_total", labels);
    let denied = [("webhook", "validate"), ("verdict", "denied"), ("reason", "VramUndeclared"), ("namespace", "lab")];
    assert_eq!(reviews(&denied), Some(3.0));
    assert_eq!(reviews(&[("webhook", "mutate"), ("verdict", "patched"), ("namespace", "team")]), Some(1.0));
    let one = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    assert_eq!(one("vramguard_refused_bodies_total", &[]), Some(1.0));
    assert_eq!(one("vramguard_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    assert_eq!(one("vramguard_review_duration_seconds_count", &[("webhook", "validate")]), Some(3.0));
    assert_eq!(one("vramguard_connections", &[]), Some(1.0));
    let mib = |mib: u32| Some(f64::from(mib) * 1024.0 * 1024.0);
    let h100 = [("node", "h100-0"), ("resource", "nvidia.com/gpu"), ("mode", "exact")];
    assert_eq!(one("vramguard_gpu_total_bytes", &h100), mib(81_559));
    assert_eq!(
        one("vramguard_gpu_allocatable_bytes", &h100),
        mib(81_559 - 490 - 816),
        "0.6 % for the driver and 1 % headroom, rounded up"
    );
    assert_eq!(one("vramguard_pool_free_bytes", &h100), mib(81_559 - 490 - 816));
    assert_eq!(one("vramguard_pool_held_bytes", &h100), Some(0.0));
    for gpu in ["0", "1"] {
        let labels = [("node", "l40s-0"), ("mode", "slot"), ("gpu", gpu)];
        assert_eq!(one("vramguard_gpu_total_bytes", &labels), mib(46_068), "GPU {gpu}");
    }
}

#[tokio::test]
async fn a_namespace_cannot_break_or_forge_metrics() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    let forged = "x\"} 1\nvramguard_forged_total{a=\"\\";
    for namespace in [forged, "\"", "\\", "a\nb", "a\r\nb", "\u{0}", "# EOF\n", "ü{},=", ""] {
        let mut pod = pod(namespace, json!({ "vramguard.dev/vram": "lots" }));
        pod["metadata"]["name"] = json!(forged);
        for path in ["/mutate/pods", "/validate/pods"] {
            client.ask(path, &review(&pod)).await;
        }
        let samples = scrape(&server);
        let forged = samples.iter().find(|sample| sample.name.contains("forged"));
        assert!(forged.is_none(), "{namespace:?}");
    }
    let answered = scrape(&server);
    let reviews = answered.iter().filter(|sample| sample.name == "vramguard_reviews_total");
    assert_eq!(reviews.map(|sample| sample.value).sum::<f64>(), 18.0, "each review is counted");
}

#[tokio::test]
async fn what_a_review_says_does_not_stay_in_memory_at_any_length() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    let mut forged = review(&pod("lab", json!({})));
    forged["request"]["namespace"] = json!("x".repeat(1 << 20));
    for path in ["/mutate/pods", "/validate/pods"] {
        client.ask(path, &forged).await;
    }
    let length = server.plain("/metrics").len();
    assert!(length < 100_000, "{length} bytes of metrics");
}
