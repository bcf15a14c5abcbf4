use proptest::prelude::*;

use super::*;
use crate::model::testing::{safetensors, with_header};

fn of(file: &(Vec<u8>, u64)) -> Result<Header, Unreadable> {
    read(file.0.as_slice(), Some(file.1))
}

/// The error of a file with this header and so many bytes of data.
fn error(header: &str, data: u64) -> String {
    of(&with_header(header, data)).unwrap_err().to_string()
}

#[test]
fn tensors_are_counted_by_role_and_the_head_that_is_the_embedding_is_not_a_parameter() {
    let file = safetensors(&[
        ("model.embed_tokens.weight", "BF16", &[100, 8], 1_600),
        ("model.layers.0.mlp.up_proj.weight", "BF16", &[16, 8], 256),
        ("model.norm.weight", "F32", &[8], 32),
        ("lm_head.weight", "BF16", &[100, 8], 1_600),
    ]);
    let header = of(&file).unwrap();
    let stored = joined(std::slice::from_ref(&header), true);
    assert_eq!((stored.bytes, stored.embedding, stored.head), (3_488, 1_600, 1_600));
    let parameters = stored.parameters.unwrap();
    assert_eq!((parameters.matrices, parameters.embedding, parameters.head, parameters.other), (128, 800, None, 8));
    let both = joined(&[header.clone(), header], false);
    assert_eq!((both.bytes, both.parameters.unwrap().head), (6_976, Some(1_600)));
}

#[test]
fn packed_tensors_have_no_count_of_parameters_and_fp8_ones_have() {
    let packed = of(&safetensors(&[("q.qweight", "I32", &[8, 4], 128), ("q.scales", "F16", &[8, 1], 16)])).unwrap();
    assert_eq!(joined(&[packed], false).parameters, None);
    let fp8 = of(&safetensors(&[("q.weight", "F8_E4M3", &[8, 4], 32)])).unwrap();
    let stored = joined(&[fp8], false);
    assert!(stored.fp8 && stored.parameters.is_some_and(|count| count.matrices == 32));
    // A mask of positions is no matrix of weights.
    let mask = of(&safetensors(&[("position_ids", "I64", &[4], 32)])).unwrap();
    assert!(joined(&[mask], false).parameters.is_some());
}

#[test]
fn each_mistake_says_where_it_is_and_what_was_expected() {
    let tensor = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    for (error, expected) in [
        (
            error(&format!(r#"{{"a":{}}}"#, tensor("[0,9]")), 9),
            "tensor \"a\": data_offsets: is 0 to 9; 8 bytes were expected",
        ),
        (error(&format!(r#"{{"a":{}}}"#, tensor("[9,1]")), 9), "tensor \"a\": data_offsets: is 9 to 1"),
        (
            error(&format!(r#"{{"a":{},"b":{}}}"#, tensor("[0,8]"), tensor("[4,12]")), 12),
            "data byte 4: a tensor overlaps",
        ),
        (
            error(&format!(r#"{{"a":{},"b":{}}}"#, tensor("[0,8]"), tensor("[9,17]")), 17),
            "data byte 9: a tensor leaves a hole",
        ),
        (error(&format!(r#"{{"a":{}}}"#, tensor("[0,8]")), 7), "but its header describes"),
        (error(&format!(r#"{{"a":{}}}"#, tensor("[0,8]")), 9), "but its header describes"),
        (
            error(r#"{"a":{"dtype":"Q9","shape":[],"data_offsets":[0,1]}}"#, 1),
            "tensor \"a\": dtype \"Q9\" is not known",
        ),
        (error(r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1), "missing field `dtype`"),
        (
            error(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,1]}}"#, 1),
            "byte 40: invalid value: integer `-1`",
        ),
        (
            error(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,1]}}"#, 1),
            "tensor \"a\": shape: has 2^64 bits or more",
        ),
        (
            error(&format!(r#"{{"a":{{"dtype":"F32","shape":{:?},"data_offsets":[0,4]}}}}"#, [1; 33]), 4),
            "more than 32 dimensions",
        ),
        (error("[]", 0), "an object of tensors"),
        (error(r#"{"a":"#, 0), "the file ends early, download it again"),
        (error("{} x", 0), "trailing characters"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_length_of_a_header_is_bounded_before_anything_of_it_is_read() {
    for (size, expected) in
        [(1u64, "has 1 bytes"), (100_000_001, "has 100000001 bytes"), (u64::MAX, "2 to 100000000 was")]
    {
        let error = read(size.to_le_bytes().as_slice(), None).unwrap_err().to_string();
        assert!(error.starts_with("byte 0: ") && error.contains(expected), "{error}");
    }
    assert!(read([1, 2, 3].as_slice(), None).unwrap_err().what.contains("the file ends within"));
}

#[test]
fn values_that_are_nested_deeply_do_not_overflow_the_stack() {
    let deep = format!("{}1{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    assert!(of(&with_header(&format!(r#"{{"__metadata__":{deep}}}"#), 0)).is_ok(), "it is read past");
    assert!(
        error(&format!(r#"{{"a":{{"dtype":"F32","shape":{deep},"data_offsets":[0,4]}}}}"#), 4).contains("invalid type")
    );
    assert!(error(&deep, 0).contains("an object of tensors"));
}

#[test]
fn an_index_lists_each_file_once_and_none_outside_of_its_folder() {
    let listed = index(r#"{"metadata":{"total_size":1},"weight_map":{"a":"x","b":"y","c":"x"}}"#.as_bytes()).unwrap();
    assert_eq!(listed.into_iter().collect::<Vec<_>>(), ["x", "y"]);
    for name in ["../x", "/etc/passwd", "a/b", "", "..", ".x", "a\\u0000"] {
        let error = index(format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("is no name of a file in the same folder"), "{name}: {error}");
    }
    assert!(index(r#"{"weight_map":{}}"#.as_bytes()).unwrap_err().to_string().contains("lists no file"));
    assert!(index(r#"{"x":{}}"#.as_bytes()).unwrap_err().to_string().contains("missing field `weight_map`"));
    assert!(index(b"x".as_slice()).is_err());
}

const DTYPES: [(&str, u64); 5] = [("F32", 4), ("BF16", 2), ("F8_E4M3", 1), ("U8", 1), ("F64", 8)];

proptest! {
    /// The oracle adds up elements × bytes.
    #[test]
    fn bytes_are_the_sum_of_elements(tensors in prop::collection::vec((0usize..5, prop::collection::vec(0u64..9, 0..4)), 0..20)) {
        let sized: Vec<(String, &str, Vec<u64>, u64)> = tensors.iter().enumerate().map(|(number, (dtype, shape))| {
            let (dtype, bytes) = DTYPES[*dtype];
            (format!("t{number}"), dtype, shape.clone(), shape.iter().product::<u64>() * bytes)
        }).collect();
        let sum: u64 = sized.iter().map(|tensor| tensor.3).sum();
        let tensors: Vec<(&str, &str, &[u64], u64)> =
            sized.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, shape.as_slice(), *bytes)).collect();
        let header = of(&safetensors(&tensors)).unwrap();
        prop_assert_eq!(header.tensors.count, tensors.len() as u64);
        prop_assert_eq!(joined(&[header], false).bytes, u128::from(sum));
    }

    #[test]
    fn no_file_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let tensors: [(&str, &str, &[u64], u64); 2] = [("lm_head.weight", "BF16", &[9, 8], 144), ("b", "F32", &[2], 8)];
        let (mut file, length) = safetensors(&tensors);
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if cut {
            file.truncate(end.index(file.len()));
        }
        if let Ok(header) = read(file.as_slice(), Some(length)) {
            prop_assert!(joined(&[header], true).bytes <= u128::from(length));
        }
    }

    #[test]
    fn no_index_panics(text in "\\PC{0,80}") {
        let _ = index(text.as_bytes());
    }
}
