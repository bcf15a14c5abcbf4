use std::collections::BTreeSet;

use serde::de::value::Error as Plain;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde_json::{Map, Value};

use super::*;
use crate::report::testing::compared;

/// `tests/reports/sample.json` has each field and texts of an attacker. The tests of all formats render it.
#[test]
fn the_sample_is_read_and_written_without_loss() {
    let sample: Value =
        serde_json::from_str(include_str!("../../../tests/reports/sample.json")).expect("the sample is JSON");
    let report = Report::deserialize(&sample).expect("the sample is a report");
    assert_eq!(serde_json::to_value(&report).expect("a report is JSON"), sample);
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../docs/audit.schema.json")).expect("the schema is JSON")
}

/// A deserializer that records the field names of a struct and reads nothing.
struct Fields<'f>(&'f mut BTreeSet<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Plain;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Plain> {
        Err(Plain::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Plain> {
        self.0.extend(fields);
        Err(Plain::custom("fields are all that is asked for"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields_of<T: DeserializeOwned>() -> BTreeSet<&'static str> {
    let mut fields = BTreeSet::new();
    assert!(T::deserialize(Fields(&mut fields)).is_err());
    fields
}

#[test]
fn the_schema_describes_the_fields_of_the_contract_and_no_others() {
    let schema = schema();
    let types = [
        ("", fields_of::<Report>()),
        ("/$defs/gap", fields_of::<Gap>()),
        ("/$defs/summary", fields_of::<Summary>()),
        ("/$defs/gpu", fields_of::<Gpu>()),
        ("/$defs/holder", fields_of::<Holder>()),
        ("/$defs/node", fields_of::<Node>()),
        ("/$defs/namespace", fields_of::<Namespace>()),
        ("/$defs/workload", fields_of::<Workload>()),
        ("/$defs/finding", fields_of::<Finding>()),
        ("/$defs/source", fields_of::<Source>()),
        ("/$defs/enforced", fields_of::<Enforced>()),
        ("/$defs/refused", fields_of::<Refused>()),
        ("/$defs/moved", fields_of::<Moved>()),
        ("/$defs/assumed", fields_of::<Assumed>()),
        ("/$defs/baseline", fields_of::<Baseline>()),
    ];
    for (at, fields) in &types {
        let properties = schema.pointer(at).expect("a definition")["properties"].as_object().expect("properties");
        let described: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(&described, fields, "{at}");
        assert!(properties.values().all(|field| field["description"].is_string()), "{at}");
    }
    let with_fields = schema["$defs"].as_object().expect("definitions").values();
    assert_eq!(with_fields.filter(|object| object.get("properties").is_some()).count() + 1, types.len());
}

/// A report in which each field is written.
fn full() -> Value {
    let mut report = compared();
    let finding = &mut report.findings[2];
    (finding.container, finding.node) = (Some("llm".into()), Some("gpu-b".into()));
    finding.numbers.insert("heldMib".into(), 7);
    serde_json::to_value(report).expect("a report is JSON")
}

/// Why a value does not match a schema; nothing if it does. Knows the keywords that the schema uses.
fn mismatch(schema: &Value, root: &Value, value: &Value) -> Option<String> {
    let known = ["$ref", "description", "type", "items", "properties", "required", "additionalProperties", "enum"];
    let more = ["const", "minimum", "$schema", "$defs", "title"];
    let keywords = schema.as_object().expect("a schema");
    let unknown = keywords.keys().find(|key| !known.contains(&key.as_str()) && !more.contains(&key.as_str()));
    assert_eq!(unknown, None);
    if let Some(target) = schema["$ref"].as_str() {
        return mismatch(root.pointer(target.trim_start_matches('#')).expect("a definition"), root, value);
    }
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("type {other}"),
    };
    let allowed = match &schema["type"] {
        Value::Array(names) => names.iter().any(|name| is(name.as_str().expect("a type"))),
        Value::String(name) => is(name),
        _ => true,
    };
    let among = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let equal = schema.get("const").is_none_or(|constant| constant == value);
    if !(allowed && among && equal) {
        return Some(format!("{value} is not {schema}"));
    }
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let missing = required.find(|name| value.is_object() && !object.contains_key(*name));
    let fields = object.iter().map(|(name, field)| (schema["properties"].get(name), field));
    let fields = fields.map(|(described, field)| (described.or(schema.get("additionalProperties")), field));
    let items = value.as_array().into_iter().flatten().map(|item| (schema.get("items"), item));
    missing.map(|name| format!("{name} is missing in {value}")).or_else(|| {
        fields.chain(items).find_map(|(schema, value)| mismatch(schema.expect("it is described"), root, value))
    })
}

#[test]
fn what_is_written_matches_the_schema_and_a_wrong_value_does_not() {
    let schema = schema();
    assert_eq!(mismatch(&schema, &schema, &full()), None);
    for (at, wrong) in [
        ("/schemaVersion", Value::from("v2")),
        ("/summary/gpus", Value::from("4")),
        ("/gpus/0/status", Value::from("broken")),
        ("/gpus/1/freeMib", Value::from(-1)),
        ("/findings/0/severity", Value::Null),
        ("/findings/0/numbers/heldMib", Value::Null),
        ("/assumed/report/nodes", Value::from("none")),
    ] {
        let mut report = full();
        *report.pointer_mut(at).expect("a field") = wrong;
        assert!(mismatch(&schema, &schema, &report).is_some(), "{at}");
    }
}

/// One object of each definition in the full report.
const OBJECTS: [(&str, &str); 14] = [
    ("", ""),
    ("/$defs/gap", "/gaps/0"),
    ("/$defs/summary", "/summary"),
    ("/$defs/gpu", "/gpus/0"),
    ("/$defs/holder", "/gpus/0/holders/0"),
    ("/$defs/node", "/nodes/0"),
    ("/$defs/namespace", "/namespaces/0"),
    ("/$defs/workload", "/workloads/0"),
    ("/$defs/finding", "/findings/2"),
    ("/$defs/source", "/findings/2/source"),
    ("/$defs/refused", "/enforced/refused/0"),
    ("/$defs/moved", "/enforced/waiting/0"),
    ("/$defs/assumed", "/assumed"),
    ("/$defs/baseline", "/baseline"),
];

#[test]
fn a_field_that_the_schema_does_not_require_may_be_left_out_and_another_may_not() {
    let schema = schema();
    for (definition, at) in OBJECTS {
        let definition = schema.pointer(definition).expect("a definition");
        let required: Vec<&str> =
            definition["required"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        for (name, field) in definition["properties"].as_object().expect("properties") {
            let mut report = full();
            let object = report.pointer_mut(at).and_then(Value::as_object_mut).expect("an object");
            assert!(object.remove(name).is_some(), "{at}/{name} is written");
            // serde reads a nullable field that is missing as null. Such a field is still always written.
            let is_nullable = field["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
            let must = required.contains(&name.as_str()) && !is_nullable;
            assert_eq!(Report::deserialize(&report).is_err(), must, "{at}/{name}");
        }
    }
}
