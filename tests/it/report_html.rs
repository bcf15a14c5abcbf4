//! The HTML report in headless Chromium: nothing of a stranger runs, filters work by the address, and the script builds
//! the same elements as the Rust modules. Without Chromium on this host, each test prints that and passes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vramguard::report::document::{Finding, Gpu, Holder, Node, Report, Severity, Status, Summary};
use vramguard::report::html::render;

use crate::support::{run, write};

/// The names of the browser in distributions.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// The longest that a page may take to start, load, run and be printed, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// One browser at a time: several would take the processors from each other.
static TURN: Mutex<()> = Mutex::new(());

/// The path of a browser; `None`, with the reason printed, if this host has none.
fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("skipped, no browser on this host: none of {} is in PATH", NAMES.join(", "));
    }
    found
}

/// Opens a page with a hash and returns its elements after its script ran, as text.
///
/// The browser has a profile of its own. `timeout` leads the group of its processes, and ends all of them in time.
fn elements(browser: &PathBuf, page: &str, hash: &str) -> String {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("page.html");
    write(&file, page);
    let mut chromium = Command::new("timeout");
    chromium.args(["--kill-after=5", &PATIENCE.as_secs().to_string()]).arg(browser);
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    chromium.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
    chromium.args(["--virtual-time-budget=5000", "--dump-dom"]);
    chromium.arg(format!("file://{}{hash}", file.display()));
    run(&mut chromium, PATIENCE + Duration::from_secs(10)).expect_success()
}

fn sample() -> Report {
    serde_json::from_str(include_str!("../reports/sample.json")).expect("the sample is a report")
}

/// The main part of a page: its sections, without filters, data and script.
fn main_part(elements: &str) -> &str {
    let (_, rest) = elements.split_once("<main").expect("the page has a main part");
    rest.split_once("</main>").expect("it ends").0
}

#[test]
fn nothing_that_a_stranger_wrote_runs() {
    let Some(browser) = browser() else { return };
    let attack = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\
                  <svg onload=\"document.title='taken'\">";
    let mut report = sample();
    report.findings[0].message = attack.to_owned();
    report.findings[0].remedy = attack.to_owned();
    report.gpus[0].holders[0].pod = attack.to_owned();
    report.namespaces[0].namespace = attack.to_owned();
    report.cluster = format!("own{attack}");
    let page = render(&[report.clone(), report]);
    // Without a filter the elements are those of the markup; the second hash makes the script build all of them.
    for hash in ["", "#q=a", "#q=%3Cscript%3Edocument.title='taken'%3C/script%3E&ns=%22%3E%3Cimg%20src=x%3E"] {
        let elements = elements(&browser, &page, hash);
        let title = elements.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next());
        let title = title.expect("the page has a title");
        assert!(title.starts_with("GPU memory audit: own&lt;/script&gt;"), "{hash}: {title}");
        assert!(elements.contains("<html lang=\"en\" class=\"script\">"), "{hash}: the own script ran to its end");
        for part in ["<img", "<svg onload", "<script>document"] {
            assert!(!elements.contains(part), "{hash}: {part}");
        }
        assert_eq!(elements.matches("<script").count(), 2, "{hash}");
    }
}

/// The policy is what stops a script if an escape is ever forgotten.
#[test]
fn a_script_that_is_not_the_pages_own_is_stopped_by_the_policy() {
    let Some(browser) = browser() else { return };
    let page = render(&[sample()]);
    let inserted = "<main id=\"main\"><script>document.title='taken'</script><i onclick=\"x\"></i>";
    let broken = page.replacen("<main id=\"main\">", inserted, 1);
    assert_ne!(broken, page);
    assert!(elements(&browser, &broken, "").contains("<title>GPU memory audit: prod-eu</title>"));
    let without = broken.replacen("Content-Security-Policy", "No-Policy", 1);
    assert!(elements(&browser, &without, "").contains("<title>taken</title>"), "without the policy it runs");
}

#[test]
fn the_script_builds_the_elements_that_the_markup_has() {
    let Some(browser) = browser() else { return };
    let mut report = sample();
    report.gpus[3].used_mib = Some(70_321);
    report.gpus[3].total_mib += 1000; // used by others
    report.gpus[0].holders[0].bounded_by = Some("allocator".to_owned());
    let page = render(&[report]);
    let written = elements(&browser, &page, "");
    let built = elements(&browser, &page, "#q=a"); // each finding, node and row has an `a`
    // Under a filter, the states of all nodes are hidden.
    let built = main_part(&built).replace("<div class=\"states\" hidden=\"\">", "<div class=\"states\">");
    let sentence = "<p class=\"none\" hidden=\"\">Nothing here matches the filter.</p>";
    let (built, written) = (built.replace(sentence, ""), main_part(&written).replace(sentence, ""));
    let difference = built.bytes().zip(written.bytes()).position(|(one, other)| one != other);
    let around = |text: &str, at: usize| {
        String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(200)..text.len().min(at + 200)]).into_owned()
    };
    if let Some(at) = difference {
        panic!("built:\n{}\nwritten:\n{}", around(&built, at), around(&written, at));
    }
    assert_eq!(built.len(), written.len());
    assert!(built.contains("Bounded by</th>") && built.contains("<td>allocator</td>"));
    assert!(built.contains("class=\"over\"") && built.contains("class=\"kept\"") && built.contains("class=\"used\""));
}

#[test]
fn filters_in_the_address_leave_what_matches() {
    let Some(browser) = browser() else { return };
    let page = render(&[sample()]);
    let shown = |hash: &str| {
        let elements = elements(&browser, &page, hash);
        let count = |part: &str| main_part(&elements).matches(part).count();
        let hits = elements.split("id=\"hits\"").nth(1).and_then(|rest| rest.split(['>', '<']).nth(1));
        (count("<li class=\"finding\""), count("<article"), hits.unwrap_or_default().to_owned())
    };
    let told = |findings: u32, nodes: u32, rows: u32| {
        format!("{findings} of 7 findings, {nodes} of 4 nodes and {rows} of 9 rows match.")
    };
    assert_eq!(shown(""), (7, 4, String::new()));
    assert_eq!(shown("#ns=notebooks"), (1, 1, told(1, 1, 2)));
    assert_eq!(shown("#node=GPU-B"), (1, 1, told(1, 1, 8)), "rows that are about no node stay");
    assert_eq!(shown("#q=ollama%20writer"), (1, 1, told(1, 1, 0)), "each word is somewhere in it");
    assert_eq!(shown("#q=jupyter-anna&ns=notebooks&node=gpu-b"), (0, 1, told(0, 1, 1)));
    assert_eq!(shown("#q=nothing-has-this"), (0, 0, told(0, 0, 0)));
    assert_eq!(shown("#ns=no-such-namespace"), (7, 4, String::new()), "the field shows what is in force");
}

/// What a script says that runs in a page after the page's own, by the title of the document. The policy of the page would
/// stop it, so the page has none here.
fn driven(browser: &PathBuf, page: &str, script: &str) -> String {
    let page = page.replacen("Content-Security-Policy", "No-Policy", 1);
    let driver = format!(
        "<script>(async () => {{ document.title = await (async () => {{ {script} }})(); }})();</script></body>"
    );
    let elements = elements(browser, &page.replacen("</body>", &driver, 1), "");
    let title = elements.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next());
    title.expect("the page has a title").to_owned()
}

/// A button is pressed by Enter, Space and click alike, so a press stands for all of them.
#[test]
fn the_head_of_a_column_is_a_button_that_sorts_and_says_how() {
    let Some(browser) = browser() else { return };
    let press = "
        const head = document.querySelectorAll('#t-namespaces th[scope=col]')[5];
        const names = () => Array.from(document.querySelectorAll('#t-namespaces tbody th'), (th) => th.textContent).join(' ');
        const said = [];
        for (let times = 0; times < 3; times += 1) {
          head.querySelector('button').click();
          said.push(`${head.getAttribute('aria-sort')}: ${names()}`);
        }
        return `${head.textContent}; ${said.join('; ')}`;";
    let expected = "Held GiB; descending: training agents notebooks; ascending: notebooks agents training; \
                    null: agents notebooks training";
    assert_eq!(driven(&browser, &render(&[sample()]), press), expected);
}

#[test]
fn each_stop_of_the_tab_key_has_a_name_and_the_order_is_that_of_the_page() {
    let Some(browser) = browser() else { return };
    let look = "
        const stops = Array.from(document.querySelectorAll('a[href], button, input, select, summary, [tabindex]'))
          .filter((stop) => stop.tabIndex >= 0 && !stop.closest('[hidden]'));
        const named = (stop) => stop.getAttribute('aria-label') || stop.labels?.[0]?.textContent || stop.textContent;
        const nameless = stops.filter((stop) => !named(stop).trim()).map((stop) => stop.outerHTML);
        const forced = stops.filter((stop) => stop.tabIndex > 0).length;
        return `${nameless.join()} ${forced} ${stops.slice(0, 2).map((stop) => stop.textContent).join(', ')} ${stops.length > 40}`;";
    let expected = " 0 Skip to the findings, Skip to the filter true";
    assert_eq!(driven(&browser, &render(&[sample()]), look), expected);
}

/// The page once said "Copied" where nothing was.
#[test]
fn without_a_clipboard_the_remedy_is_selected_and_the_page_says_so() {
    let Some(browser) = browser() else { return };
    let press = "
        Object.defineProperty(navigator, 'clipboard', { value: undefined });
        document.execCommand = () => false;
        const button = document.querySelector('.copy');
        button.click();
        await Promise.resolve();
        await Promise.resolve();
        const code = button.parentElement.querySelector('code').textContent;
        return `${button.textContent}: ${getSelection().toString() === code}: ${document.getElementById('hits').textContent}`;";
    let expected = "Selected: true: The remedy is selected: copy it with Ctrl+C, or ⌘C.";
    assert_eq!(driven(&browser, &render(&[sample()]), press), expected);
}

/// 5,000 nodes with 8 GPUs each and 150,000 holders.
fn large() -> Report {
    let mut report = Report { cluster: "large".into(), ..Report::default() };
    for node in 0..5000_u64 {
        let name = format!("gpu-node-{node:04}");
        for gpu in 0..8 {
            let pods = if (node + gpu).is_multiple_of(4) { 3 } else { 4 };
            let holders = (0..pods).map(|pod| Holder {
                seen: false,
                namespace: format!("team-{:03}", (node + pod) % 100),
                pod: format!("agent-{node:04}-{gpu}-{pod}-7d9f8b6c5d-abcde"),
                container: "llm".into(),
                vram_mib: Some(8912),
                declared: true,
                ..Holder::default()
            });
            report.gpus.push(Gpu {
                node: name.clone(),
                gpu: format!("GPU-{node:08x}-0000-4000-8000-{gpu:012}"),
                mode: "steered".into(),
                total_mib: 81_559,
                allocatable_mib: 80_253,
                headroom_mib: 1306,
                held_mib: pods * 8912,
                free_mib: Some(80_253 - pods * 8912),
                holders: holders.collect(),
                ..Gpu::default()
            });
        }
        report.nodes.push(Node { node: name.clone(), mode: "steered".into(), gpus: 8, ..Node::default() });
        report.findings.push(Finding {
            severity: Severity::Info,
            reason: "StrandedVram".into(),
            kind: "Node".into(),
            namespace: String::new(),
            message: "a part of it is free and smaller than the smallest demand".into(),
            remedy: String::new(),
            id: format!("stranded{node}"),
            name,
            container: None,
            node: None,
            pods: 0,
            numbers: std::collections::BTreeMap::new(),
            source: None,
        });
    }
    report.nodes[4321].status = Status::Overcommitted;
    report.summary = Summary { gpus: 40_000, nodes: 5000, overcommitted_gpus: 1, ..Summary::default() };
    report
}

#[test]
fn a_page_of_5000_nodes_loads_and_filters() {
    let report = large();
    let holders: usize = report.gpus.iter().map(|gpu| gpu.holders.len()).sum();
    assert_eq!((report.gpus.len(), holders), (40_000, 150_000));
    let page = render(&[report]);
    println!("the page has {} bytes", page.len());
    assert!(page.len() < 20_000_000, "{}", page.len());
    assert!(page.find("gpu-node-4321</h3>") < page.find("gpu-node-0000</h3>"), "the worst node comes first");
    let Some(browser) = browser() else { return };
    let start = Instant::now();
    let whole = elements(&browser, &page, "");
    println!("it is loaded in {:?}", start.elapsed());
    assert!(whole.contains("Show 40 more of 4,960"), "further nodes are offered");
    let start = Instant::now();
    let filtered = elements(&browser, &page, "#q=agent-3210-5&node=3210");
    println!("it is loaded and filtered in {:?}", start.elapsed());
    assert!(filtered.contains("0 of 5,000 findings, 1 of 5,000 nodes and 0 of 0 rows match."));
    assert!(main_part(&filtered).contains("<h3>gpu-node-3210</h3>"));
    let linked = elements(&browser, &page, "#f-stranded4999");
    assert!(main_part(&linked).contains("id=\"f-stranded4999\""), "a link shows a finding of a later screen");
}
