//! Variables that have no effect, or a dangerous one. Owns the closed list of them, and what is known of each.
//!
//! - `OLLAMA_MAX_VRAM`: Ollama stopped reading it with concurrency (ollama/ollama#5755 reports it, #5855 removed it, #10623
//!   removed it again).
//! - `PYTORCH_ALLOC_CONF` and `PYTORCH_CUDA_ALLOC_CONF`: PyTorch ends the process at the first use of CUDA if it cannot read
//!   the value (pytorch/pytorch `c10/core/AllocatorConfig.h`, `c10/cuda/CUDAAllocatorConfig.cpp`; measured with torch 2.9 and
//!   2.11). The list of keys has those of all versions, because the version in an image is not known.

use serde_json::Value;

use super::{kept, listed};
use crate::capacity::verdict::finding::EnvironmentFault;
use crate::keys;

/// Returns the faults of all containers of a pod or template. A value from a source is not known, so it has none.
pub(super) fn faults(object: &Value) -> Vec<EnvironmentFault> {
    let containers = listed(object, "initContainers").chain(listed(object, "containers"));
    containers.flat_map(of_container).take(kept::MOST).collect()
}

fn of_container(container: &Value) -> impl Iterator<Item = EnvironmentFault> {
    let named = container.get("name").and_then(Value::as_str).unwrap_or_default();
    let variables = container.get("env").and_then(Value::as_array).into_iter().flatten();
    variables.filter_map(move |variable| {
        let name = variable.get("name")?.as_str()?;
        let value = variable.get("value")?.as_str()?;
        let (is_dead, why) = fault(name, value)?;
        Some(EnvironmentFault {
            container: kept::cut(named),
            name: name.to_owned(),
            value: kept::cut(value),
            why,
            is_dead,
        })
    })
}

/// Whether a variable has no effect or a dangerous one, and why.
fn fault(name: &str, value: &str) -> Option<(bool, &'static str)> {
    match name {
        keys::OLLAMA_MAX_VRAM => Some((
            true,
            "which Ollama no longer reads; OLLAMA_CONTEXT_LENGTH, OLLAMA_NUM_PARALLEL and OLLAMA_MAX_LOADED_MODELS \
             bound what it takes",
        )),
        keys::PYTORCH_ALLOC_CONF | keys::PYTORCH_CUDA_ALLOC_CONF => allocator(value).err().map(|why| (false, why)),
        _ => None,
    }
}

const UNKNOWN_KEY: &str = "which has a key that no version of PyTorch knows; the process ends at its first use of CUDA";
const MALFORMED: &str =
    "which is not a list of key:value, separated by commas; the process ends at its first use of CUDA";
const BAD_VALUE: &str = "which has a value that PyTorch does not accept; the process ends at its first use of CUDA";

/// Checks a configuration of PyTorch's allocator as PyTorch does: `key:value,key:[value,value]`, white space ignored.
fn allocator(text: &str) -> Result<(), &'static str> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':').ok_or(MALFORMED)?;
        if key.is_empty() || key.contains([',', '[', ']']) {
            return Err(MALFORMED);
        }
        let end = match after.strip_prefix('[') {
            Some(list) => list.find(']').ok_or(MALFORMED)? + 2,
            None => after.find(',').unwrap_or(after.len()),
        };
        let (value, after) = after.split_at(end);
        check(key, value)?;
        rest = match after.strip_prefix(',') {
            Some(after) => after,
            None if after.is_empty() => after,
            None => return Err(MALFORMED),
        };
    }
    Ok(())
}

/// Checks one entry. Values whose bounds differ between versions are not checked.
fn check(key: &str, value: &str) -> Result<(), &'static str> {
    let good = match key {
        "expandable_segments"
        | "graph_capture_record_stream_reuse"
        | "pinned_free_catch_all"
        | "pinned_use_background_threads"
        | "pinned_use_cuda_host_register"
        | "pinned_use_hip_host_register"
        | "release_lock_on_cudamalloc"
        | "release_lock_on_hipmalloc"
        | "throw_on_cudamalloc_oom" => matches!(value, "True" | "False"),
        "large_segment_size_mb"
        | "max_non_split_rounding_mb"
        | "max_split_size_mb"
        | "pinned_max_cached_size_mb"
        | "pinned_max_round_threshold_mb"
        | "pinned_num_register_threads"
        | "pinned_reserve_segment_size_mb" => value.parse::<u64>().is_ok(),
        "garbage_collection_threshold" => value.parse().is_ok_and(|value: f64| value > 0.0 && value < 1.0),
        "per_process_memory_fraction" => value.parse().is_ok_and(|value: f64| (0.0..=1.0).contains(&value)),
        "backend" => matches!(value, "native" | "cudaMallocAsync" | "hipMallocAsync"),
        "expandable_segments_reserve" | "expandable_segments_reserve_by_class" | "roundup_power2_divisions" => {
            !value.is_empty()
        }
        _ => return Err(UNKNOWN_KEY),
    };
    if good { Ok(()) } else { Err(if value.is_empty() { MALFORMED } else { BAD_VALUE }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pytorch_accepts_is_no_fault() {
        for text in [
            "",
            "expandable_segments:True",
            "max_split_size_mb:512,garbage_collection_threshold:0.8",
            " backend : cudaMallocAsync ",
            "roundup_power2_divisions:[256:1,512:2,>:8],expandable_segments:False",
            "roundup_power2_divisions:4",
            "per_process_memory_fraction:0.5",
            "pinned_use_background_threads:True,pinned_num_register_threads:8,",
        ] {
            assert_eq!(allocator(text), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn what_ends_a_process_is_told_apart() {
        for (text, why) in [
            ("max_split_size:512", UNKNOWN_KEY),
            ("expandable_segments:True,foo:1", UNKNOWN_KEY),
            ("expandable_segments=True", MALFORMED),
            ("expandable_segments", MALFORMED),
            (":True", MALFORMED),
            ("max_split_size_mb:", MALFORMED),
            ("roundup_power2_divisions:[256:1", MALFORMED),
            ("roundup_power2_divisions:[256:1]max_split_size_mb:512", MALFORMED),
            ("expandable_segments:true", BAD_VALUE),
            ("max_split_size_mb:512MB", BAD_VALUE),
            ("garbage_collection_threshold:80", BAD_VALUE),
            ("garbage_collection_threshold:NaN", BAD_VALUE),
            ("backend:cuda", BAD_VALUE),
        ] {
            assert_eq!(allocator(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn faults_name_container_and_value() {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "ollama", "env": [
            {"name": "OLLAMA_MAX_VRAM", "value": "8000000000"},
            {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "max_split_size:1"},
            {"name": "PYTORCH_ALLOC_CONF", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        ]}]}});
        let found: Vec<(String, String, bool)> =
            faults(&pod).into_iter().map(|fault| (fault.name, fault.value, fault.is_dead)).collect();
        let expected =
            [("OLLAMA_MAX_VRAM", "8000000000", true), ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size:1", false)];
        assert_eq!(found, expected.map(|(name, value, dead)| (name.to_owned(), value.to_owned(), dead)));
        assert_eq!(faults(&pod)[0].container, "ollama");
    }
}
