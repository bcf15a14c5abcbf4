//! Pods that need as much memory as possible for their size as JSON.
//!
//! They are written as text, because as JSON values they would be as large in this process.

/// A pod whose `spec` consists mostly of `repeated`.
struct Shape {
    name: &'static str,
    before: &'static str,
    repeated: fn(usize) -> String,
    after: &'static str,
}

const MAIN: &str = r#"{"name":"main","image":"none","resources":{"limits":{"nvidia.com/gpu":"1"}}"#;

const SHAPES: [Shape; 11] = [
    Shape {
        name: "values of an affinity",
        before: r#""affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"NotIn","values":["#,
        repeated: |_| r#""a""#.to_owned(),
        after: "]}]}]}}},",
    },
    Shape {
        name: "requirements of a term",
        before: r#""affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":["#,
        repeated: |_| "{}".to_owned(),
        after: "]}]}}},",
    },
    Shape {
        name: "terms of an affinity",
        before: r#""affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":["#,
        repeated: |_| r#"{"matchExpressions":[{},{}]}"#.to_owned(),
        after: "]}}},",
    },
    Shape { name: "tolerations", before: r#""tolerations":["#, repeated: |_| "{}".to_owned(), after: "]," },
    Shape { name: "init containers", before: r#""initContainers":["#, repeated: |_| "{}".to_owned(), after: "]," },
    Shape {
        name: "init containers with GPUs",
        before: r#""initContainers":["#,
        repeated: |n| format!(r#"{{"name":"{n}","resources":{{"limits":{{"nvidia.com/gpu":"1"}}}}}}"#),
        after: "],",
    },
    Shape {
        name: "variables",
        before: r#""initContainers":[{"env":["#,
        repeated: |_| r#"{"name":"CUDA_DEVICE_ORDER"}"#.to_owned(),
        after: "]}],",
    },
    Shape {
        name: "arguments",
        before: r#""initContainers":[{"resources":{"limits":{"nvidia.com/gpu":"1"}},"args":["#,
        repeated: |_| r#""""#.to_owned(),
        after: "]}],",
    },
    Shape {
        name: "limits",
        before: r#""initContainers":[{"resources":{"limits":{"#,
        repeated: |n| format!(r#""{n}":1"#),
        after: "}}}],",
    },
    Shape { name: "node selector", before: r#""nodeSelector":{"#, repeated: |n| format!(r#""{n}":"""#), after: "}," },
    Shape {
        name: "long names",
        before: r#""initContainers":["#,
        repeated: |n| format!(r#"{{"name":"{n}{}"}}"#, "x".repeat(20_000)),
        after: "],",
    },
];

/// Name and review of each shape, of about `bytes` bytes.
pub(super) fn reviews(namespace: &str, bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    SHAPES.iter().map(|shape| (shape.name, review(namespace, &shape.pod(namespace, bytes)))).collect()
}

/// An update of a Deployment for each shape, with two versions of about `bytes` bytes, of which each has the shape in its
/// template.
pub(super) fn workloads(namespace: &str, bytes: usize) -> Vec<Vec<u8>> {
    let review = |shape: &Shape| {
        let template = shape.pod(namespace, bytes);
        let version = |replicas: u32| {
            format!(
                r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"hostile"}},"spec":{{"replicas":{replicas},"template":{template}}}}}"#
            )
        };
        format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","operation":"UPDATE","namespace":"{namespace}","object":{},"oldObject":{}}}}}"#,
            version(2),
            version(1)
        )
        .into_bytes()
    };
    SHAPES.iter().map(review).collect()
}

/// A pod of about `bytes` bytes that passes the API server's checks before admission.
pub(super) fn pod(namespace: &str, bytes: usize) -> String {
    SHAPES[0].pod(namespace, bytes)
}

fn review(namespace: &str, pod: &str) -> Vec<u8> {
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","operation":"CREATE","namespace":"{namespace}","resource":{{"group":"","version":"v1","resource":"pods"}},"userInfo":{{"username":"tenant"}},"object":{pod}}}}}"#
    )
    .into_bytes()
}

impl Shape {
    fn pod(&self, namespace: &str, bytes: usize) -> String {
        // Each declaration names a missing container, and a refusal could list all of them.
        let annotations: Vec<String> = (0..1000).map(|n| format!(r#""vramguard.dev/vram.none-{n}":"1Gi""#)).collect();
        let mut pod = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"hostile","namespace":"{namespace}","annotations":{{{}}}}},"spec":{{{}"#,
            annotations.join(","),
            self.before
        );
        let mut number = 0;
        while pod.len() < bytes {
            if number > 0 {
                pod.push(',');
            }
            pod.push_str(&(self.repeated)(number));
            number += 1;
        }
        pod + self.after + r#""containers":["# + MAIN + "}]}}"
    }
}
