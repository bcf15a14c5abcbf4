//! What the text of a page must and must not contain. `tests/it/report_html.rs` opens pages in a browser.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::Value;

use super::headline::{Tone, verdict};
use super::text::{counted, gpu_name, grouped, percent, room, taken, time, visible};
use super::{CONTENT_SECURITY_POLICY, SCRIPT, STYLE, render};
use crate::report::document::{Finding, Gpu, Holder, Node, Report, Severity, Status, Summary};

fn sample() -> Value {
    serde_json::from_str(include_str!("../../../tests/reports/sample.json")).expect("the sample is JSON")
}

fn report(json: Value) -> Report {
    serde_json::from_value(json).expect("the sample is a report")
}

fn sample_page() -> String {
    render(&[report(sample())])
}

/// Replaces each text of a report by `hostile`, except words of closed lists. Ids become different texts.
fn poison(value: &mut Value, key: &str, hostile: &str, number: &mut u32) {
    match value {
        Value::String(_) if ["severity", "status"].contains(&key) => {}
        Value::String(text) if key == "mode" && text == "slot" => {} // decides which bar there is
        Value::String(text) => {
            *number += 1;
            *text = format!("{hostile}{number}");
        }
        Value::Array(items) => items.iter_mut().for_each(|item| poison(item, key, hostile, number)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, field)| poison(field, key, hostile, number)),
        _ => {}
    }
}

/// A report with every part, each text of which is hostile.
fn poisoned(hostile: &str) -> Report {
    let mut json = sample();
    let inner = json.clone();
    json["assumed"] = serde_json::json!({ "assumptions": ["replicas=4"], "report": inner });
    json["baseline"] = serde_json::json!({
        "generatedAt": "x", "new": ["a1b2c3d4e5f60001"], "gone": [inner["findings"][1]], "same": 2,
    });
    poison(&mut json, "", hostile, &mut 0);
    report(json)
}

#[test]
fn no_text_of_a_stranger_becomes_an_element_or_an_attribute() {
    for hostile in ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "--><!--<script>", "\" onload=\"x"]
    {
        let page = render(&[poisoned(hostile), poisoned(hostile)]);
        assert!(!page.contains(hostile), "{hostile} is in the page as it is");
        let escaped = hostile.replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert!(page.matches(&escaped).count() > 50, "{hostile} is shown");
        for (part, times) in [("<script", 2), ("</script", 2), ("<style", 1), ("<img", 0), ("<!--", 0), ("-->", 0)] {
            assert_eq!(page.matches(part).count(), times, "{part} in a page with {hostile}");
        }
    }
}

#[test]
fn every_link_leads_into_the_page() {
    let page = render(&[poisoned("javascript:alert(1)//")]);
    let links: Vec<&str> = page.split("href=\"").skip(1).collect();
    assert!(links.len() > 10, "{}", links.len());
    assert_eq!(links.iter().find(|link| !link.starts_with('#')), None);
}

#[test]
fn anchors_are_plain_words_even_if_ids_are_not() {
    let page = render(&[poisoned("\" onclick=\"x")]);
    assert!(page.contains("id=\"f-0_\"") && page.contains("href=\"#f-0_\""), "an id that is no word gets a number");
    let mut twice = report(sample());
    twice.findings = vec![twice.findings[0].clone(), twice.findings[0].clone()];
    let page = render(&[twice]);
    assert_eq!(page.matches("id=\"f-a1b2c3d4e5f60001\"").count(), 1, "an id is given once");
    assert!(page.contains("id=\"f-1_\""));
}

#[test]
fn characters_without_a_glyph_are_written_out() {
    let page = render(&[poisoned("a\u{202e}b\u{1b}[31m\u{200b}\u{0}")]);
    for letter in ['\u{202e}', '\u{1b}', '\u{200b}', '\0'] {
        assert!(!page.contains(letter), "{letter:?}");
    }
    assert!(page.contains(r"a\u{202e}b\u{1b}[31m\u{200b}\u{0}"), "in the markup");
    assert!(page.contains(r"a\\u{202e}b\\u{1b}[31m\\u{200b}\\u{0}"), "in the data, where a backslash is two");
    assert_eq!(visible("plain ÄÖ 日本 é\n\t"), "plain ÄÖ 日本 é\n\t");
}

#[test]
fn the_data_is_json_with_the_texts_of_the_report() {
    let page = sample_page();
    let (_, data) = page.split_once(r#"<script type="application/json" id="data">"#).expect("the data is there");
    let (data, _) = data.split_once("</script>").expect("it ends");
    assert_eq!(data.find(['<', '>', '&']), None);
    let data: Value = serde_json::from_str(data).expect("it is JSON");
    let hostile = &data["findings"][5][2][0];
    assert_eq!(hostile[2], "<script>alert(1)</script>");
    assert_eq!(hostile[6], "annotation \"vramguard.dev/<b>\" is not known\\u{202e}; `$(id)` ]]> --> \"'&");
    assert_eq!(data["nodes"].as_array().expect("nodes").len(), 4);
    assert_eq!(data["tables"]["t-namespaces"].as_array().expect("namespaces").len(), 3);
}

#[test]
fn the_page_names_no_address_from_which_anything_is_loaded() {
    let page = sample_page();
    let markup = page.replace("&lt;img src=x", "").replace(r"\u003cimg src=x", ""); // a text of the sample
    for word in
        ["http:", "https:", "src=", "url(", "@import", "<link", "<iframe", "fetch(", "XMLHttpRequest", "import("]
    {
        assert!(!markup.contains(word), "{word}");
    }
    for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
        assert!(!SCRIPT.contains(word), "{word}: the script sets text and never markup");
    }
}

#[test]
fn the_policy_allows_the_own_script_and_no_other() {
    let digest = ring::digest::digest(&ring::digest::SHA256, SCRIPT.as_bytes());
    let source = format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(digest));
    assert!(CONTENT_SECURITY_POLICY.contains(&format!("script-src {source};")), "page.js changed: put {source} there");
    assert!(CONTENT_SECURITY_POLICY.starts_with("default-src 'none';"));
    let escaped = CONTENT_SECURITY_POLICY.replace('"', "&quot;");
    assert!(sample_page().contains(&format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{escaped}\">")));
    assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--") && !STYLE.contains('<'));
}

#[test]
fn the_same_reports_make_the_same_page() {
    assert_eq!(sample_page(), sample_page());
    let (mut first, mut second) = (report(sample()), report(sample()));
    first.generated_at = "2026-11-01T00:00:00Z".into();
    first.summary.held_mib = 1024;
    second.generated_at = "2026-11-02T00:00:00+02:00".into();
    let last = report(sample());
    let page = render(&[first.clone(), second.clone(), last.clone()]);
    assert_eq!(page, render(&[second, first, last]), "the trend is in the order of times");
    assert!(page.contains("id=\"trend\"") && !sample_page().contains("id=\"trend\""));
}

#[test]
fn amounts_are_gib_with_one_decimal_and_zero_is_none() {
    let shown = [0, 1, 102, 103, 256, 1024, 23_870, 26_736, 3_210_120_000, u64::MAX].map(room);
    let most = "18,014,398,509,481,983.9";
    assert_eq!(shown, ["0", "<0.1", "<0.1", "0.1", "0.2", "1.0", "23.3", "26.1", "3,134,882.8", most]);
    assert_eq!([0, 1, 256, 1024, 3_210_120_001].map(taken), ["0", "0.1", "0.3", "1.0", "3,134,882.9"]);
    assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!((counted(1, "pod"), counted(0, "pod")), ("1 pod".into(), "0 pods".into()));
    assert_eq!((percent(1, 3), percent(5, 0), percent(u64::MAX, 1)), (Some(33), None, Some(u64::MAX)));
    assert_eq!(gpu_name("GPU-5a7c1b0e-0000-4000-8000-000000000001"), "GPU-5a7c…0001");
    assert_eq!((gpu_name("3"), gpu_name("GPU-3")), ("GPU 3".into(), "GPU-3".into()));
    assert_eq!((time("2026-11-29T12:00:30Z"), time("today")), ("2026-11-29 12:00 UTC".into(), "today".into()));
}

#[test]
fn the_verdict_is_about_the_gravest_that_is_known() {
    let fine = Summary { gpus: 31, nodes: 12, ..Summary::default() };
    let cases: [(Summary, Tone, &str); 7] = [
        (
            Summary { overcommitted_gpus: 3, ..fine.clone() },
            Tone::Bad,
            "3 of 31 GPUs are promised more memory than they have",
        ),
        (
            Summary { overcommitted_gpus: 1, ..fine.clone() },
            Tone::Bad,
            "1 of 31 GPUs is promised more memory than it has",
        ),
        (
            Summary { maybe_overcommitted_nodes: 2, unknown_nodes: 1, ..fine.clone() },
            Tone::Doubtful,
            "A GPU may be promised more memory than it has on 2 nodes",
        ),
        (
            Summary { unknown_nodes: 1, ..fine.clone() },
            Tone::Doubtful,
            "No GPU is known to be overcommitted, but the GPUs of 1 node are not known",
        ),
        (
            Summary { refused_pods: 7, ..fine.clone() },
            Tone::Doubtful,
            "No GPU is overcommitted; 7 pods would be refused under Enforce",
        ),
        (fine, Tone::Good, "None of 31 GPUs is promised more memory than it has"),
        (Summary::default(), Tone::Doubtful, "No GPUs were found"),
    ];
    for (summary, tone, sentence) in cases {
        assert_eq!(verdict(&summary), (tone, sentence.to_owned()));
    }
}

#[test]
fn a_report_of_nothing_says_so() {
    for page in [render(&[]), render(&[Report::default()])] {
        for sentence in ["No GPUs were found.", "No findings.", "No node has GPUs.", "No pod would be refused."] {
            assert!(page.contains(sentence), "{sentence}");
        }
    }
}

#[test]
fn the_worst_nodes_come_first_and_say_what_is_not_known() {
    let page = sample_page();
    let place = |node: &str| page.find(&format!("<h3>{node}</h3>")).unwrap_or_else(|| panic!("{node} is shown"));
    let order = ["gke-agents-a100-pool-7f3d9c2b-x4kq", "gpu-d", "gpu-c", "gpu-b"].map(place);
    assert!(order.is_sorted(), "{order:?}");
    assert!(page.contains("<strong>Its GPUs are not known: </strong>the labels say 2 GPUs"));
    assert!(
        page.contains("2 GPUs together</p>") && page.contains("It is not known which pod is on which GPU (mode slot")
    );
    assert!(page.contains("in use now") && page.contains("In use, reported 3 hours ago: 68.7 GiB"));
    assert!(page.contains("<p class=\"say\">What is used here is not current: reported 3 hours ago.</p>"));
}

#[test]
fn what_is_used_is_shown_in_words_next_to_what_is_held() {
    let page = sample_page();
    let bar = |gpu: &str| {
        let bar =
            page.split(&format!("aria-label=\"Memory of {gpu}\"")).nth(1).and_then(|rest| rest.split("</div>").next());
        bar.unwrap_or_else(|| panic!("{gpu} has a bar"))
    };
    let (fresh, stale) = (bar("GPU 0"), bar("GPU-5a7c…0001"));
    // From the end of the headroom: 706 of 27,442 in hundredths of a percent.
    assert!(fresh.contains("class=\"used\" style=\"left:2.57%;"), "{fresh}");
    assert!(fresh.contains("In use now: 24.8 GiB, 0.3 GiB of it by no pod"), "{fresh}");
    assert!(fresh.contains("writer-0, container llm: 8.8 GiB, uses 8.8 GiB, at most 8.8 GiB so far"), "{fresh}");
    assert!(fresh.contains("<span class=\"use\">in use 24.8</span>"), "{fresh}");
    assert!(stale.contains("class=\"used stale\"") && stale.contains("in use 68.7, not current"), "{stale}");
    assert!(page.contains("<td>idle for 5 hours</td>") && page.contains("<td>not current</td>"));
    let mut without = report(sample());
    for gpu in &mut without.gpus {
        (gpu.used_mib, gpu.outside_mib, gpu.stale) = (None, None, None);
        gpu.holders.iter_mut().for_each(|holder| (holder.used_mib, holder.peak_mib) = (None, None));
    }
    let without = render(&[without]);
    for part in ["li class=\"used", "class=\"use\"", "Peak</th>", "class=\"used stale", "In use now"] {
        assert!(!without.contains(part), "{part} without an agent");
    }
}

#[test]
fn what_is_over_begins_where_the_bar_ends() {
    let page = sample_page();
    let bar = page.split("aria-label=\"Memory of GPU 0\"").nth(1).and_then(|rest| rest.split("</ol>").next());
    let bar = bar.expect("the GPU has a bar");
    let style = |class: &str| {
        let rest = bar.split(&format!("class=\"{class}\" style=\"")).nth(1).unwrap_or_else(|| panic!("{class}: {bar}"));
        let numbers = rest.split(['"', ':', '%']).filter_map(|part| part.parse::<f64>().ok()).take(2);
        <[f64; 2]>::try_from(numbers.collect::<Vec<f64>>()).expect("left and width")
    };
    let ([_, end], [over, width]) = (style("track"), style("over"));
    assert!((end - 24_576.0 / 27_442.0 * 100.0).abs() < 0.02, "headroom and allocatable of all: {end}");
    assert!((over - end).abs() < 0.01 && (over + width - 100.0).abs() < 0.01, "{over} {width}");
    assert_eq!(bar.matches("class=\"seg").count(), 3, "one part for each holder");
    assert!(bar.contains("agents/writer-0, container llm: 8.8 GiB") && bar.contains("Over by 2.8 GiB"));
}

#[test]
fn amounts_beyond_all_sense_do_not_break_a_bar() {
    let holder = Holder { vram_mib: Some(u64::MAX), ..Holder::default() };
    let gpu = Gpu {
        node: "n".into(),
        total_mib: u64::MAX,
        allocatable_mib: u64::MAX,
        held_mib: u64::MAX,
        headroom_mib: u64::MAX,
        used_mib: Some(u64::MAX),
        holders: vec![holder.clone(), holder],
        ..Gpu::default()
    };
    let slot = Gpu { mode: "slot".into(), ..gpu.clone() };
    let page = render(&[Report { gpus: vec![gpu, slot.clone(), slot], ..Report::default() }]);
    assert!(page.contains("<h3>n</h3>"), "a node that only GPUs name is shown");
}

#[test]
fn what_is_left_out_of_the_first_screen_is_counted() {
    let finding = Finding { severity: Severity::Warn, ..report(sample()).findings[0].clone() };
    let findings = (0..25).map(|number| Finding { id: format!("id{number}"), ..finding.clone() });
    let nodes =
        (0..45).map(|number| Node { node: format!("node-{number:02}"), status: Status::Full, ..Node::default() });
    let page = render(&[Report { findings: findings.collect(), nodes: nodes.collect(), ..Report::default() }]);
    assert_eq!(page.matches("<li class=\"finding\"").count(), 10);
    assert!(page.contains("15 more of this reason are in this file."));
    assert_eq!(page.matches("<article").count(), 40);
    assert!(page.contains("5 more nodes, less full than these, are in this file.") && page.contains("node-44"));
}

#[test]
fn text_is_legible_on_each_ground_in_light_and_dark() {
    let luminance = |colour: &str| {
        let digits = colour.trim_start_matches('#');
        let full: String = if digits.len() == 3 {
            digits.chars().flat_map(|digit| [digit, digit]).collect()
        } else {
            digits.to_owned()
        };
        let channel = |index: usize| {
            let value = u8::from_str_radix(&full[index..index + 2], 16).expect("a colour is hexadecimal");
            let part = f64::from(value) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(2) + 0.0722 * channel(4)
    };
    let mut themes = 0;
    for block in STYLE.split("--paper:").skip(1) {
        let block = format!("--paper:{}", block.split('}').next().unwrap_or_default());
        let colours: BTreeMap<&str, &str> = block
            .split(';')
            .filter_map(|declaration| declaration.split_once(':'))
            .map(|(name, colour)| (name.trim().trim_start_matches("--"), colour.trim()))
            .collect();
        let grounds = [
            ("ink", "paper raised tint tint2"),
            ("muted", "paper raised"),
            ("accent", "paper"),
            ("bad", "paper bad-tint"),
            ("warn", "paper warn-tint"),
            ("good", "paper good-tint"),
        ];
        for (text, grounds) in grounds {
            for ground in grounds.split(' ') {
                let (one, other) = (luminance(colours[text]), luminance(colours[ground]));
                let contrast = (one.max(other) + 0.05) / (one.min(other) + 0.05);
                assert!(contrast >= 4.5, "{text} on {ground}: {contrast:.2}");
            }
        }
        themes += 1;
    }
    assert_eq!(themes, 4, "light, dark by the system, dark by the address, paper");
}
