use super::render;
use crate::report::Options;
use crate::report::document::{Gpu, Node, Report, Status};
use crate::report::testing::{compared, large, sample};
use crate::report::text::width;

fn at(width: usize) -> Options {
    Options { width, ..Options::default() }
}

#[test]
fn the_sample_at_80_columns() {
    insta::assert_snapshot!(render(&compared(), &at(80)));
}

#[test]
fn the_sample_at_120_columns() {
    insta::assert_snapshot!(render(&compared(), &at(120)));
}

#[test]
fn the_sample_in_ascii_with_all() {
    let text = render(&sample(), &Options { ascii: true, all: true, ..at(100) });
    assert!(text.is_ascii());
    insta::assert_snapshot!(text);
}

#[test]
fn a_large_cluster_at_100_columns() {
    insta::assert_snapshot!(render(&large(), &at(100)));
}

#[test]
fn an_empty_report() {
    insta::assert_snapshot!(render(&Report::default(), &at(80)));
}

/// A text without the escape sequences of colours.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').expect("the end of a colour").1)
}

#[test]
fn colours_change_nothing_but_colours() {
    for report in [compared(), large()] {
        let colored = render(&report, &Options { color: true, ..at(100) });
        assert!(colored.contains("\u{1b}[31;1m"));
        assert_eq!(without_colours(&colored), render(&report, &at(100)));
    }
}

#[test]
fn no_text_of_a_stranger_acts_on_a_terminal_or_a_runner() {
    let hostile = "::error::x\u{1b}[2J\r\n::set-output::\u{202e}##[add-mask]\u{9b}";
    let mut report = compared();
    for node in &mut report.nodes {
        node.node = hostile.into();
        node.mode = hostile.into();
    }
    for gpu in &mut report.gpus {
        gpu.gpu = hostile.into();
    }
    for finding in &mut report.findings {
        (finding.message, finding.remedy) = (hostile.into(), hostile.into());
        (finding.kind, finding.node) = (hostile.into(), Some(hostile.into()));
    }
    for space in &mut report.namespaces {
        space.namespace = hostile.into();
    }
    for gap in &mut report.gaps {
        (gap.what, gap.why) = (hostile.into(), hostile.into());
    }
    (report.cluster, report.generated_at) = (hostile.into(), hostile.into());
    let text = render(&report, &Options { all: true, ..at(160) });
    assert!(text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}')), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("::")), "{text}");
    assert!(!text.contains("##["), "{text}");
}

/// The lines of the section that begins with a title.
fn section<'t>(text: &'t str, title: &str) -> Vec<&'t str> {
    let lines = text.lines().skip_while(|line| !line.starts_with(title)).skip(1);
    lines.take_while(|line| !line.is_empty()).collect()
}

#[test]
fn names_are_cut_to_the_width_of_the_terminal_and_numbers_are_not() {
    let mut report = sample();
    report.gpus[0].held_mib = 123_456_789;
    report.gpus[3].gpu = "GPU-日本語日本語-0000-4000-8000-000000000001".into();
    for columns in 80..160 {
        let text = render(&report, &at(columns));
        let lines = section(&text, "GPUS");
        assert_eq!(lines.len(), 7, "{text}");
        for line in &lines {
            assert!(width(line) <= columns, "{columns}: {line}");
            assert_eq!(line.trim_end(), *line);
        }
        assert!(lines[1].contains(" 120563.3 "), "{text}");
    }
}

#[test]
fn numbers_are_not_cut_even_where_they_do_not_fit() {
    let mut report = sample();
    report.gpus[0].held_mib = u64::MAX;
    report.gpus[0].allocatable_mib = 1 << 42;
    let text = render(&report, &at(1));
    // More than Kubernetes can express is shown as the most that it can.
    assert!(text.contains(" 4294967296.0 8589934592.0 "), "{text}");
}

#[test]
fn an_amount_that_is_not_known_is_not_shown_as_a_sum() {
    let mut report = sample();
    report.nodes[3].held_mib = 2048;
    report.gpus[1].used_mib = Some(1024);
    let text = render(&report, &at(120));
    let lines = section(&text, "GPUS");
    let of = |node: &str| *lines.iter().find(|line| line.starts_with(node)).expect("its row");
    assert!(of("gpu-d").contains(" ≥2.0 "), "{text}");
    // One of its two GPUs says how much is in use; the sum is not known.
    let columns: Vec<&str> = of("gpu-b").split_whitespace().collect();
    assert_eq!(columns[..9], ["gpu-b", "2", "GPUs", "slot", "48.0", "46.6", "14.5", "5.8", "-"]);
    assert!(lines.iter().any(|line| line.trim_start().starts_with("└") && line.contains(" 1.0 ")), "{text}");
}

#[test]
fn healthy_gpus_of_one_node_share_a_row_where_there_are_many() {
    let mut report = large();
    report.nodes.truncate(4);
    report.gpus.truncate(32);
    let text = render(&report, &at(100));
    insta::assert_snapshot!(section(&text, "GPUS").join("\n"), @"
    NODE                     GPU     MODE     ALLOC  HELD  FREE  USED  PODS  STATUS
    gpu-pool-a100-node-0000  3       steered   23.3  26.2     0     -     3  over
    gpu-pool-a100-node-0000  7 GPUs  steered  163.1     0  23.3     -     0  ok
    gpu-pool-a100-node-0001  8 GPUs  steered  186.4     0  23.3     -     0  ok
    gpu-pool-a100-node-0002  8 GPUs  steered  186.4     0  23.3     -     0  ok
    gpu-pool-a100-node-0003  8 GPUs  steered  186.4     0  23.3     -     0  ok
    --all shows each GPU
    ");
    report.nodes.truncate(2);
    report.gpus.truncate(16);
    assert_eq!(section(&render(&report, &at(100)), "GPUS").len(), 17);
}

#[test]
fn a_node_with_more_rows_than_are_shown_is_shown_if_it_is_the_worst() {
    let mut report = sample();
    let (gpu, node) = (report.gpus[0].clone(), report.nodes[1].clone());
    report.nodes = vec![Node { node: gpu.node.clone(), status: Status::Overcommitted, gpus: 32, ..node }];
    report.gpus = (0..32).map(|index| Gpu { gpu: index.to_string(), ..gpu.clone() }).collect();
    let text = render(&report, &at(100));
    assert!(section(&text, "GPUS")[1].contains(" 32 GPUs "), "{text}");
}

#[test]
fn holders_of_overcommitted_gpus_are_listed_the_worst_gpu_and_the_largest_pod_first() {
    let mut report = sample();
    report.nodes[1].status = Status::MaybeOvercommitted;
    report.gpus[3].status = Status::Overcommitted;
    report.gpus[3].held_mib = 99_999;
    let text = render(&report, &at(100));
    insta::assert_snapshot!(section(&text, "HOLDERS").join("\n"), @"
    POD                                HELD  USED  PEAK AS       GPU          NODE
    training/finetune-0                78.4 68.5* 69.4* slot     GPU-5a…00001 gpu-c
    agents/researcher-7d9f8b6c5d-abcde  8.8   8.7   8.7 declared 0            gke-agents-a1…f3d9c2b-x4kq
    agents/researcher-7d9f8b6c5d-fghij  8.8   7.2   8.0 declared 0            gke-agents-a1…f3d9c2b-x4kq
    agents/writer-0                     8.8   8.8   8.8 declared 0            gke-agents-a1…f3d9c2b-x4kq
    agents/writer-1                     5.9     -     - declared -            gpu-b
    notebooks/jupyter-anna              5.9     -     - slot     -            gpu-b
    agents/tools-5c6d7                  2.8     -     - declared -            gpu-b
    ");
}

#[test]
fn a_wide_table_of_holders_shows_what_keeps_each_to_its_declaration() {
    let mut report = sample();
    let holders = report.gpus.iter_mut().find(|gpu| gpu.status == Status::Overcommitted).map(|gpu| &mut gpu.holders);
    for (holder, word) in holders.unwrap().iter_mut().zip(["allocator", "nothing"]) {
        holder.bounded_by = Some(word.to_owned());
    }
    let text = render(&report, &at(140));
    insta::assert_snapshot!(section(&text, "HOLDERS").join("\n"), @"
    POD                                 HELD  USED  PEAK  AS        BOUNDED BY  GPU  NODE
    agents/researcher-7d9f8b6c5d-abcde   8.8   8.7   8.7  declared  allocator   0    gke-agents-a100-pool-7f3d9c2b-x4kq
    agents/researcher-7d9f8b6c5d-fghij   8.8   7.2   8.0  declared  nothing     0    gke-agents-a100-pool-7f3d9c2b-x4kq
    agents/writer-0                      8.8   8.8   8.8  declared  -           0    gke-agents-a100-pool-7f3d9c2b-x4kq
    ");
    assert!([80, 100].iter().all(|width| !render(&report, &at(*width)).contains("BOUNDED BY")));
    assert!(!render(&sample(), &at(140)).contains("BOUNDED BY"), "an older report does not tell");
}

#[test]
fn bad_gpus_beyond_the_limit_are_summed_up_as_bad() {
    let mut report = large();
    for gpu in report.gpus.iter_mut().take(30) {
        gpu.status = Status::Overcommitted;
        gpu.held_mib = 30_000;
    }
    let text = render(&report, &at(100));
    let lines = section(&text, "GPUS");
    let over = lines.iter().filter(|line| line.ends_with(" over")).count();
    assert_eq!((lines.len(), over), (24, 21), "{text}");
    let all = render(&report, &Options { all: true, ..at(100) });
    assert_eq!(section(&all, "GPUS").len(), 2001);
}
