use super::*;

/// The line, kind and name of each object of a text, and the errors.
fn read_all(text: &[u8]) -> (Vec<(u64, String)>, Vec<String>) {
    let mut objects = Vec::new();
    let mut sink = |line: u64, object: Value| {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("?").to_owned();
        objects.push((line, format!("{} {}", text("/kind"), text("/metadata/name"))));
        Ok(())
    };
    let errors = match read("f", text, &mut sink) {
        Ok(count) => {
            assert_eq!(count, objects.len() as u64);
            Vec::new()
        }
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    };
    (objects, errors)
}

fn objects(text: &str) -> Vec<(u64, String)> {
    let (objects, errors) = read_all(text.as_bytes());
    assert_eq!(errors, Vec::<String>::new());
    objects
}

fn errors(text: &str) -> Vec<String> {
    read_all(text.as_bytes()).1
}

fn named(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(line, name)| (*line, (*name).to_owned())).collect()
}

/// A List as `kubectl get -o json` prints it: members sorted, so `kind` comes last.
const PRINTED: &str = r#"{
    "apiVersion": "v1",
    "items": [
        {
            "kind": "Pod",
            "metadata": {"name": "a"}
        },
        {
            "kind": "Node",
            "metadata": {"name": "n0"}
        }
    ],
    "kind": "List",
    "metadata": {"resourceVersion": ""}
}
"#;

#[test]
fn a_list_as_kubectl_prints_it_is_read_item_by_item_with_their_lines() {
    assert_eq!(objects(PRINTED), named(&[(4, "Pod a"), (8, "Node n0")]));
    let yaml = "apiVersion: v1\nitems:\n- kind: Pod\n  metadata: {name: a}\n- kind: Node\n  metadata:\n    name: n0\nkind: List\n";
    assert_eq!(objects(yaml), named(&[(3, "Pod a"), (5, "Node n0")]));
}

#[test]
fn lists_in_lists_and_objects_may_follow_each_other() {
    let nested = r#"{"items": [{"kind": "PodList", "items": [{"kind": "Pod", "metadata": {"name": "a"}}]},
        {"kind": "Pod", "metadata": {"name": "b"}}], "kind": "List"}
        {"kind": "Pod", "metadata": {"name": "c"}}
        ---
        {"kind": "List", "items": []}"#;
    assert_eq!(objects(nested), named(&[(1, "Pod a"), (2, "Pod b"), (3, "Pod c")]));
    let yaml = "# first\n---\nkind: List\nitems:\n- kind: List\n  items: [{kind: Pod, metadata: {name: a}}]\n---\n\
                kind: Pod\nmetadata: {name: b}\n---\n# nothing\n";
    assert_eq!(objects(yaml), named(&[(5, "Pod a"), (8, "Pod b")]));
}

#[test]
fn items_of_a_list_of_one_kind_need_no_kind_of_their_own() {
    let raw = r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{"metadata": {"name": "a"}}]}"#;
    assert_eq!(objects(raw), named(&[(1, "Pod a")]));
    let yaml = "kind: PodList\napiVersion: v1\nitems:\n- metadata: {name: a}\n";
    assert_eq!(objects(yaml), named(&[(4, "Pod a")]));
}

#[test]
fn line_ends_of_windows_and_a_byte_order_mark_change_nothing() {
    for text in [PRINTED, "kind: Pod\nmetadata:\n  name: a\n---\nkind: Node\nmetadata: {name: n0}\n"] {
        let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        assert_eq!(objects(&windows), objects(text));
    }
}

#[test]
fn an_object_may_have_a_member_named_items() {
    let secret = r#"{"kind": "Thing", "metadata": {"name": "t"}, "items": 3}"#;
    assert_eq!(objects(secret), named(&[(1, "Thing t")]));
    assert_eq!(objects("kind: Thing\nitems: [1, 2]\nmetadata: {name: t}\n"), named(&[(1, "Thing t")]));
}

#[test]
fn a_file_of_comments_has_no_objects() {
    assert_eq!(objects("# nothing here\n---\n# nor here\n"), []);
}

#[test]
fn an_empty_file_is_an_error() {
    let what = "f:1: is empty; expected objects as `kubectl get -o json` prints them";
    assert_eq!(errors(""), [what]);
    assert_eq!(errors(" \r\n\t"), [what]);
}

#[test]
fn utf_16_is_named() {
    let (_, errors) = read_all(&[0xff, 0xfe, b'{', 0]);
    assert_eq!(
        errors,
        ["f:1: is UTF-16, expected UTF-8; in PowerShell, write it with: kubectl … | Out-File -Encoding utf8 FILE"]
    );
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_ends() {
    for length in 1..PRINTED.len() - 2 {
        let errors = errors(&PRINTED[..length]);
        assert_eq!(errors.len(), 1, "{length}: {errors:?}");
        assert!(errors[0].ends_with("; the file is truncated"), "{length}: {errors:?}");
    }
    let at = PRINTED.find("\"Node\"").unwrap();
    assert_eq!(errors(&PRINTED[..at]), ["f:9: ends within the object that begins at line 8; the file is truncated"]);
    let after_item = PRINTED.find("        },").unwrap() + 9;
    assert_eq!(
        errors(&PRINTED[..after_item]),
        ["f:7: ends within the object that begins at line 1; the file is truncated"]
    );
}

#[test]
fn truncated_yaml_in_a_quote_or_a_flow_is_an_error() {
    assert_eq!(errors("kind: Pod\nmetadata: {name: a\n"), ["f:2: unclosed bracket '{'"]);
}

#[test]
fn a_key_that_is_there_twice_is_an_error_with_its_line() {
    let json = "{\"kind\": \"List\", \"items\": [\n{\"kind\": \"Pod\",\n\"spec\": {\"a\": 1,\n\"a\": 2}},\n\
                {\"kind\": \"Pod\", \"metadata\": {\"name\": \"b\"}}]}";
    let (objects, errors) = read_all(json.as_bytes());
    assert_eq!(errors, ["f:4: key \"a\" is there twice"]);
    assert_eq!(objects, named(&[(5, "Pod b")]), "the other items are read");
    assert_eq!(self::errors("kind: Pod\nspec:\n  a: 1\n  a: 2\n"), ["f:4: key \"a\" is there twice; keep one"]);
    assert_eq!(self::errors(r#"{"kind": "List", "items": [], "items": []}"#), ["f:1: key \"items\" is there twice"]);
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    let deep = format!("{{\"kind\": \"Pod\", \"spec\":\n{}", "[".repeat(1_000_000));
    assert_eq!(errors(&deep), ["f:2: is nested more than 100 levels deep"]);
    let lists = format!("{}{}", "{\"kind\": \"List\", \"items\": [".repeat(20), "]}".repeat(20));
    assert_eq!(errors(&lists), ["f:1: is a List within more than 8 others"]);
    let yaml = errors(&format!("kind: Pod\nspec: {}\n", "[".repeat(100_000)));
    assert_eq!(yaml.len(), 1);
    assert_eq!(yaml[0], "f:2: recursion limit exceeded");
}

#[test]
fn anchors_that_multiply_are_refused() {
    let mut bomb = String::from("kind: Pod\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let errors = errors(&bomb);
    assert_eq!(errors, ["f:6: is nested too deeply, or grows too large by its aliases; write out what they stand for"]);
}

#[test]
fn what_is_no_object_is_named_with_its_place() {
    assert_eq!(
        errors("{\"kind\": \"List\", \"items\": [\n3,\n{\"kind\": \"Pod\"}, null, [1]]}"),
        [
            "f:2: items[0] is a number, expected an object",
            "f:3: items[2] is null, expected an object",
            "f:3: items[3] is a list, expected an object",
        ]
    );
    assert_eq!(errors("kind: List\nitems:\n- kind: Pod\n- text\n"), ["f:4: items[1] is a text, expected an object"]);
    assert_eq!(errors("kind: List\nitems: 3\n"), ["f:1: List holds no list of items"]);
    assert_eq!(errors("{\"kind\": \"PodList\",\n\"items\": null}"), ["f:1: PodList holds no list of items"]);
    assert_eq!(errors("just text\n"), ["f:1: is the text \"just text\", expected a Kubernetes object"]);
    assert_eq!(errors("[{\"kind\": \"Pod\"}]"), ["f:1: is not a JSON object; a file is either JSON or YAML"]);
    assert_eq!(errors("{\"items\": [{\"kind\": \"Pod\"}]}"), ["f:1: holds no Kubernetes object: kind is missing"]);
    assert_eq!(errors("{\"items\": [], \"kind\": \"Thing\"}"), ["f:1: Thing has items, and is no List"]);
}

#[test]
fn broken_json_is_named_with_the_byte() {
    for (text, expected) in [
        ("{\"kind\": \"Pod\"\n\"metadata\": {}}", "f:2: has `\"`, expected `,` or `}`"),
        ("{\"kind\" \"Pod\"}", "f:1: has `\"`, expected `:`"),
        ("{\"kind\": \"Pod\", metadata: {}}", "f:1: has `m`, expected a name in quotes"),
        ("{\"kind\": \"List\", \"items\": [{}\n{}]}", "f:2: has `{`, expected `,` or `]` after an item"),
        ("{\"kind\": \"Pod\",\n\"spec\": {\"a\": [1}}", "f:2: has `}`, expected `,` or `]`"),
        ("{\"kind\": \"Pod\",\n\"spec\": {\"a\": nul}}", "f:2: is not JSON: expected ident"),
        ("{\"kind\": \"Pod\"}\nkind: Pod\n", "f:2: is not a JSON object; a file is either JSON or YAML"),
        (
            "{\"kind\": \"Pod\", \"spec\": \"a\nb\"}",
            "f:2: is not JSON: control character (\\u0000-\\u001F) found while parsing a string",
        ),
    ] {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0], expected, "{text}");
    }
    let (_, errors) = read_all(b"{\"kind\": \"Pod\",\n\"spec\": \"\xff\"}");
    assert_eq!(errors, ["f:2: is not JSON: invalid unicode code point"]);
    let (_, errors) = read_all(b"kind: Pod\nspec: \xff\n");
    assert_eq!(errors, ["f:2: is not UTF-8"]);
}

#[test]
fn yaml_has_a_bound_and_json_has_none() {
    let long = format!("kind: Pod\n# {}\n", "x".repeat(200));
    let read = |text: &str| read_bounded("f", text.as_bytes(), 100, &mut |_, _| Ok(()));
    let errors = read(&long).unwrap_err();
    assert_eq!(errors[0].to_string(), "f:1: is more than 0 MiB of YAML, which is read as a whole; use -o json");
    assert_eq!(read(&format!("{{\"kind\": \"Pod\", \"a\": \"{}\"}}", "x".repeat(200))), Ok(1));
    let object = format!("{{\"kind\": \"Pod\",\n\"a\": \"{}\"}}", "x".repeat(17 << 20));
    assert_eq!(self::errors(&object), ["f:1: has an object longer than 16 MiB"]);
}

#[test]
fn objects_longer_than_what_is_read_at_once_keep_their_lines() {
    let item = |name: usize, length: usize| {
        format!(
            "{{\"kind\": \"Pod\",\n\"metadata\": {{\"name\": \"{name}\"}},\n\"a\": \"{}\"}}",
            "\\\"x".repeat(length)
        )
    };
    let items: Vec<String> = (0..40).map(|name| item(name, name * 5000)).collect();
    let list = format!("{{\"items\": [\n{}\n], \"kind\": \"List\"}}", items.join(",\n"));
    let expected: Vec<(u64, String)> = (0..40).map(|name| (2 + 3 * name, format!("Pod {name}"))).collect();
    assert_eq!(objects(&list), expected);
}

#[test]
fn after_too_many_errors_the_rest_is_not_read() {
    let list = format!("{{\"kind\": \"List\", \"items\": [{}]}}", ["1"; 1000].join(","));
    let errors = errors(&list);
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS], "f:1: has 100 errors up to here; the rest is not read");
}

#[test]
fn what_the_sink_refuses_is_an_error_with_the_line_of_the_object() {
    let read = read("f", PRINTED.as_bytes(), &mut |_, object| {
        if object["kind"] == "Node" { Err("Node n: is wrong".to_owned()) } else { Ok(()) }
    });
    assert_eq!(read.unwrap_err()[0].to_string(), "f:8: Node n: is wrong");
}

#[test]
fn a_reduced_object_lacks_what_nothing_reads_and_nothing_else() {
    let pod = r#"{"kind": "Pod", "metadata": {"managedFields": [{}], "name": "a", "labels": {"image": "x"}},
        "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "args", "value": "v"}], "livenessProbe": {}}],
            "image": 1}, "status": {"phase": "Running", "containerStatuses": [{}], "images": 1}}"#;
    let mut objects = Vec::new();
    let mut sink = |_, object| {
        objects.push(object);
        Ok(())
    };
    assert_eq!(read_reduced("f", pod.as_bytes(), &mut sink), Ok(1));
    assert_eq!(read("f", pod.as_bytes(), &mut sink), Ok(1));
    let reduced = r#"{"kind": "Pod", "metadata": {"name": "a", "labels": {"image": "x"}},
        "spec": {"containers": [{"name": "c", "env": [{"name": "args", "value": "v"}]}], "image": 1},
        "status": {"phase": "Running"}}"#;
    let parsed = [reduced, pod].map(|text| serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(objects, parsed);
}

#[test]
fn what_a_pod_is_read_as_does_not_depend_on_the_parts_that_are_left_out() {
    let template = r#"{"kind": "CronJob", "metadata": {"name": "a"}, "spec": {"jobTemplate": {"spec": {"template":
        {"spec": {"initContainers": [{"name": "c", "command": ["x"], "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}}}}}"#;
    let mut found = None;
    let read = read_reduced("f", template.as_bytes(), &mut |_, object| {
        found = object.pointer("/spec/jobTemplate/spec/template/spec/initContainers/0").cloned();
        Ok(())
    });
    assert_eq!(
        (read, found.unwrap().to_string()),
        (Ok(1), r#"{"name":"c","resources":{"limits":{"nvidia.com/gpu":"1"}}}"#.to_owned())
    );
}
