//! The estimate against the published measurements of `tests/estimate/`, and the table of `docs/estimate.md` against the
//! result.
//!
//! The terms of the runtime were chosen by the rows of Qwen3-4B. All other models check them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::document;

/// Models in the order of the table, and how their quantization is called on the command line.
const MODELS: [&str; 5] = ["Qwen3-4B", "Qwen3-0.6B", "Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B"];
const TYPES: [(&str, &str); 4] = [("BF16", "bf16"), ("FP8", "fp8"), ("GPTQ-Int8", "int8"), ("AWQ-INT4", "int4")];
/// Tokens that were generated after the prompt.
const GENERATED: u64 = 2_048;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/estimate")
}

/// Relative errors by model and type: above 0 if the estimate is too large.
fn errors() -> BTreeMap<(usize, usize), Vec<f64>> {
    let text = std::fs::read_to_string(folder().join("qwen3.csv")).expect("measurements");
    let mut errors: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |field: usize| -> u64 { fields[field].parse().unwrap_or_else(|_| panic!("{line}")) };
        let model = MODELS.iter().position(|model| *model == fields[0]).expect("a known model");
        let dtype = TYPES.iter().position(|(name, _)| *name == fields[1]).expect("a known type");
        let context = (number(2) + GENERATED).to_string();
        let arguments = ["--context", &context, "--weights-dtype", TYPES[dtype].1, "--runtime", "transformers"];
        let read = document(&folder().join(format!("{}.json", MODELS[model])), &arguments);
        assert_eq!(read["kvBytesPerToken"], number(8), "{line}");
        let total = read["totalMib"].as_u64().expect("an amount");
        errors.entry((model, dtype)).or_default().push(total as f64 / number(4) as f64 - 1.0);
    }
    errors
}

/// The mean of the absolute errors, and the worst error with its sign, in percent.
fn summary(errors: &[f64]) -> (f64, f64) {
    let mean = errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len() as f64;
    let worst = errors.iter().copied().max_by(|one, other| one.abs().total_cmp(&other.abs())).expect("an error");
    (mean * 100.0, worst * 100.0)
}

#[test]
fn the_estimate_is_within_its_bounds_of_what_was_measured_and_the_page_says_how_far_off_it_is() {
    let errors = errors();
    let all: Vec<f64> = errors.values().flatten().copied().collect();
    assert_eq!(all.len(), 56);
    let (mean, worst) = summary(&all);
    assert!(mean <= 5.0 && worst.abs() <= 12.0, "mean {mean} worst {worst}");
    let mut table = String::from("| model | weights | rows | mean error | worst error |\n|---|---|---|---|---|\n");
    let mut row = |model: &str, dtype: &str, errors: &[f64]| {
        let (mean, worst) = summary(errors);
        let worst = format!("{worst:+.1}").replace("-0.0", "0.0").replace("+0.0", "0.0");
        let _ = writeln!(table, "| {model} | {dtype} | {} | {mean:.1} % | {worst} % |", errors.len());
    };
    for ((model, dtype), errors) in &errors {
        row(MODELS[*model], TYPES[*dtype].0, errors);
    }
    let others: Vec<f64> =
        errors.iter().filter(|((model, _), _)| *model > 0).flat_map(|(_, errors)| errors).copied().collect();
    row("all but Qwen3-4B", "all", &others);
    row("all", "all", &all);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/estimate.md");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains(&table), "docs/estimate.md should have:\n{table}");
}
