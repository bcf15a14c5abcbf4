//! What `vramguard estimate` prints: the parts as a table, as JSON, and as the annotation to paste. Owns the JSON contract of
//! that command; the amounts are [`capacity::estimate`](crate::capacity::estimate)'s.

use std::fmt::Write;

use serde::Serialize;

use super::plan::columns;
use super::text::{clean, count};
use crate::capacity::estimate::{Estimate, Request};
use crate::keys;

/// Version of the JSON contract.
const SCHEMA_VERSION: u32 = 1;

/// An estimate with what it is for.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    schema_version: u32,
    /// The files that were read.
    files: Vec<String>,
    architecture: String,
    /// Tokens of each sequence.
    context: u64,
    /// Sequences at the same time.
    concurrency: u64,
    kv_type: &'static str,
    /// The type that was asked for; absent for that of the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights_dtype: Option<&'static str>,
    runtime: &'static str,
    weights_mib: u64,
    kv_mib: u64,
    runtime_mib: u64,
    /// What to declare: the sum of all parts, without a CUDA context.
    total_mib: u64,
    kv_bytes_per_token: u64,
    /// The line to paste.
    annotation: String,
    parts: Vec<PartDocument>,
    /// What is not contained or assumed.
    notes: Vec<String>,
}

/// One part.
#[derive(Clone, Debug, Serialize)]
struct PartDocument {
    name: &'static str,
    mib: u64,
    confidence: &'static str,
    /// Where the amount comes from.
    source: String,
}

/// The annotation with the amount of an estimate, as a line of YAML.
pub fn annotation(estimate: &Estimate) -> String {
    format!("{}: \"{}Mi\"", keys::VRAM, estimate.total.mib())
}

impl Document {
    /// Makes the document of an estimate.
    pub fn new(estimate: &Estimate, request: &Request, architecture: &str, files: Vec<String>) -> Document {
        let parts = estimate.parts.iter().map(|part| PartDocument {
            name: part.kind.name(),
            mib: part.amount.mib(),
            confidence: part.confidence.name(),
            source: part.basis.to_string(),
        });
        Document {
            schema_version: SCHEMA_VERSION,
            files,
            architecture: architecture.to_owned(),
            context: request.context,
            concurrency: request.concurrency,
            kv_type: request.kv.name(),
            weights_dtype: request.weights.map(|dtype| dtype.name()),
            runtime: request.runtime.name(),
            weights_mib: estimate.weights.mib(),
            kv_mib: estimate.kv.mib(),
            runtime_mib: estimate.runtime.mib(),
            total_mib: estimate.total.mib(),
            kv_bytes_per_token: estimate.kv_bytes_per_token,
            annotation: annotation(estimate),
            parts: parts.collect(),
            notes: estimate.remarks.iter().map(ToString::to_string).collect(),
        }
    }

    /// The estimate for programs.
    pub fn json(&self) -> String {
        super::json::pretty(self)
    }

    /// The estimate for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let files = match self.files.as_slice() {
            [file] => clean(file),
            files => count(files.len() as u64, "file"),
        };
        let sequences = count(self.concurrency, "sequence");
        let _ = writeln!(
            text,
            "{files}: architecture {}, {sequences} of {} tokens, runtime {}\n",
            clean(&self.architecture),
            self.context,
            self.runtime
        );
        let mut rows: Vec<Vec<String>> = Vec::new();
        for part in &self.parts {
            rows.push(vec![
                part.name.to_owned(),
                format!("{}Mi", part.mib),
                part.confidence.to_owned(),
                part.source.clone(),
            ]);
        }
        let each = format!("a token takes {} bytes of KV cache", self.kv_bytes_per_token);
        rows.push(vec!["total".to_owned(), format!("{}Mi", self.total_mib), String::new(), each]);
        columns(&mut text, &["PART", "AMOUNT", "CONFIDENCE", "FROM"], rows, &[1]);
        let _ = writeln!(text, "\ndeclare: {}\n", self.annotation);
        for note in &self.notes {
            let _ = writeln!(text, "note: {}", clean(note));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::estimate::{KvType, Part, Runtime, WeightsDtype};
    use crate::capacity::verdict::estimate::{Basis, Confidence, PartKind, Remark};
    use crate::capacity::vram::Vram;

    fn sample() -> Document {
        let mib = Vram::from_mib;
        let cache = Basis::PerToken { layers: 32, tokens: 32_768, dtype: "q8_0" };
        let part = |kind, amount, confidence, basis| Part { kind, amount: mib(amount), confidence, basis };
        let estimate = Estimate {
            parts: vec![
                part(PartKind::Weights, 4_403, Confidence::High, Basis::Stored),
                part(PartKind::KvCache, 2_176, Confidence::High, cache),
                part(PartKind::ComputeBuffer, 259, Confidence::Low, Basis::Batch(512)),
            ],
            weights: mib(4_403),
            kv: mib(2_176),
            runtime: mib(259),
            total: mib(6_838),
            kv_bytes_per_token: 69_632,
            remarks: vec![Remark::NoContext],
        };
        let request = Request {
            context: 8_192,
            concurrency: 4,
            kv: KvType::Q8_0,
            weights: Some(WeightsDtype::Int4),
            runtime: Runtime::LlamaCpp,
        };
        Document::new(&estimate, &request, "lla\u{1b}[31mma", vec!["a.gguf".to_owned()])
    }

    #[test]
    fn the_table_has_each_part_with_its_confidence_and_the_line_to_paste() {
        insta::assert_snapshot!(sample().table(), @r#"
        a.gguf: architecture lla\u{1b}[31mma, 4 sequences of 8192 tokens, runtime llama.cpp

        PART            AMOUNT  CONFIDENCE  FROM
        weights         4403Mi  high        sizes of the stored tensors
        KV cache        2176Mi  high        32 layers × 32768 tokens as q8_0
        compute buffer   259Mi  low         one forward pass of 512 tokens
        total           6838Mi              a token takes 69632 bytes of KV cache

        declare: vramguard.dev/vram: "6838Mi"

        note: the CUDA context of a process is not contained: vramguard adds perProcessOverhead to each declaration
        "#);
    }

    #[test]
    fn the_json_has_the_sums_by_the_names_of_the_contract() {
        let read: serde_json::Value = serde_json::from_str(&sample().json()).unwrap();
        assert_eq!(
            ["weightsMib", "kvMib", "runtimeMib", "totalMib", "kvBytesPerToken"].map(|name| read[name].as_u64()),
            [Some(4_403), Some(2_176), Some(259), Some(6_838), Some(69_632)]
        );
        assert_eq!(read["annotation"], "vramguard.dev/vram: \"6838Mi\"");
        let part = serde_json::json!({
            "name": "KV cache", "mib": 2_176, "confidence": "high", "source": "32 layers × 32768 tokens as q8_0"
        });
        assert_eq!(read["parts"][1], part);
        assert_eq!((&read["weightsDtype"], &read["kvType"]), (&"int4".into(), &"q8_0".into()));
    }
}
