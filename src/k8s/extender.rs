//! Arguments and result of a kube-scheduler extender's filter: `ExtenderArgs` → [`Args`], and [`Rejected`] →
//! `ExtenderFilterResult`. Owns both wire forms, which have no version. `capacity::filter` decides which nodes can take
//! the pod.
//!
//! Go writes these keys capitalised and reads them in any case, so other callers may write them in any case. This
//! module does the same as Go. Of the pod it reads the few fields of [`super::object`], and of whole nodes only their
//! names.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::bounded::{Bounded, Entry};
use super::object::PodObject;
use super::review::from_map;
use crate::capacity::filter::Rejected;

/// The arguments of a filter request.
#[derive(Debug)]
pub struct Args<'a> {
    /// The pod that kube-scheduler is placing.
    pub pod: PodObject,
    /// The nodes that passed kube-scheduler's own filters, in the order of the request.
    pub nodes: Bounded<Candidate<'a>, MAX_NODES>,
    form: Form,
}

/// One node of a filter request.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Name of the node.
    pub name: Cow<'a, str>,
    /// JSON of the node, if the request has whole nodes.
    object: Option<&'a RawValue>,
}

/// The form of the nodes in the request, which the result must have too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `NodeNames`, from a scheduler configured with `nodeCacheCapable: true`.
    Names,
    /// `Nodes`. The scheduler continues with the objects of the result, so each node returns unchanged.
    Objects,
}

/// The largest number of nodes in one request. By default, kube-scheduler asks about a part of a large cluster: 500 of
/// 5,000.
pub const MAX_NODES: usize = 10_000;

/// Why a body is not a filter request. The error names the position and never the content, which may be anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// The body is not JSON, or does not have the shape of `ExtenderArgs`.
    #[error(
        "the body is not a Pod and either NodeNames or Nodes, as kube-scheduler asks an extender (line {line}, column {column})"
    )]
    Malformed {
        /// Line of the body, from 1.
        line: usize,
        /// Column of that line, from 1.
        column: usize,
    },
    /// The request has more than [`MAX_NODES`] nodes.
    #[error("{count} nodes in one question, and vramguard answers {MAX_NODES} at most; lower percentageOfNodesToScore")]
    TooMany {
        /// Number of nodes in the request.
        count: usize,
    },
}

/// Reads the arguments of a filter request.
///
/// # Errors
/// The body is not a filter request, or has more than [`MAX_NODES`] nodes.
pub fn read(body: &[u8]) -> Result<Args<'_>, ArgsError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let args = Args::deserialize(&mut deserializer)
        .and_then(|args| deserializer.end().map(|()| args))
        .map_err(|error| ArgsError::Malformed { line: error.line(), column: error.column() })?;
    match args.nodes.excess() {
        Some((count, _)) => Err(ArgsError::TooMany { count }),
        None => Ok(args),
    }
}

/// Writes the result that reports an error to kube-scheduler.
pub fn error(error: &ArgsError) -> Vec<u8> {
    let result = serde_json::json!({
        "Nodes": null, "NodeNames": null, "FailedNodes": {}, "FailedAndUnresolvableNodes": {}, "Error": error.to_string(),
    });
    serde_json::to_vec(&result).expect("a result of strings is JSON")
}

impl<'de> Deserialize<'de> for Args<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Args<'de>, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Args<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pod and nodes")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Args<'de>, A::Error> {
                let (mut pod, mut names, mut objects) = (None, None, None);
                while let Some(Text(key)) = map.next_key()? {
                    let again = if key.eq_ignore_ascii_case("Pod") {
                        pod.replace(map.next_value::<Option<Pod>>()?).is_some()
                    } else if key.eq_ignore_ascii_case("NodeNames") {
                        names.replace(map.next_value::<Option<Bounded<Named<'de>, MAX_NODES>>>()?).is_some()
                    } else if key.eq_ignore_ascii_case("Nodes") {
                        objects.replace(map.next_value::<Option<NodeList<'de>>>()?).is_some()
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        false
                    };
                    if again {
                        return Err(A::Error::custom("a key twice"));
                    }
                }
                let Pod(pod) = pod.flatten().ok_or_else(|| A::Error::custom("no pod"))?;
                let (nodes, form) = match (names.flatten(), objects.flatten()) {
                    (Some(names), None) => (names.map(|Named(node)| node), Form::Names),
                    (None, Some(NodeList(nodes))) => (nodes, Form::Objects),
                    (Some(_), Some(_)) | (None, None) => return Err(A::Error::custom("not one list of nodes")),
                };
                Ok(Args { pod, nodes, form })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A pod that is read from a JSON object only. Without this type, serde would also accept a list with the values of its
/// fields.
struct Pod(PodObject);

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pod, D::Error> {
        from_map(deserializer).map(Pod)
    }
}

/// A string that borrows from the body, and is copied only if it has escapes.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'a>, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrowed)
    }
}

/// An entry of `NodeNames`.
struct Named<'a>(Candidate<'a>);

impl<'de> Deserialize<'de> for Named<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Named<'de>, D::Error> {
        let Text(name) = Text::deserialize(deserializer)?;
        Ok(Named(Candidate { name, object: None }))
    }
}

impl Entry for Named<'_> {}

/// The unparsed JSON of a node.
#[derive(Deserialize)]
#[serde(transparent)]
struct Whole<'a>(#[serde(borrow)] &'a RawValue);

impl Entry for Whole<'_> {}

/// `v1.NodeList`.
struct NodeList<'a>(Bounded<Candidate<'a>, MAX_NODES>);

impl<'de> Deserialize<'de> for NodeList<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeList<'de>, D::Error> {
        #[derive(Deserialize)]
        struct List<'a> {
            // Go writes an empty list as null.
            #[serde(borrow)]
            items: Option<Bounded<Whole<'a>, MAX_NODES>>,
        }
        #[derive(Deserialize)]
        struct Node<'a> {
            #[serde(borrow)]
            metadata: Metadata<'a>,
        }
        #[derive(Deserialize)]
        struct Metadata<'a> {
            #[serde(borrow)]
            name: Text<'a>,
        }
        let List { items } = from_map(deserializer)?;
        let candidate = |Whole(object): Whole<'de>| {
            // The error's position is dropped, because it is relative to the node.
            let node: Node<'de> = serde_json::from_str(object.get()).map_err(|_| D::Error::custom("no node"))?;
            Ok(Candidate { name: node.metadata.name.0, object: Some(object) })
        };
        items.unwrap_or_default().try_map(candidate).map(NodeList)
    }
}

/// The decision about one node: it can take the pod, or why it cannot.
pub type Answer = Result<(), Rejected>;

/// `ExtenderFilterResult`, ready to be written.
#[derive(Debug)]
pub struct FilterResult<'r, 'a> {
    args: &'r Args<'a>,
    answers: &'r [Answer],
}

impl<'a> Args<'a> {
    /// Combines the answers, one for each node in the order of the request, into the result.
    ///
    /// # Panics
    /// The number of answers differs from the number of nodes.
    pub fn result<'r>(&'r self, answers: &'r [Answer]) -> FilterResult<'r, 'a> {
        assert_eq!(self.nodes.len(), answers.len(), "each node has an answer");
        FilterResult { args: self, answers }
    }
}

impl FilterResult<'_, '_> {
    fn answered(&self) -> impl Iterator<Item = (&Candidate<'_>, &Answer)> {
        self.args.nodes.iter().zip(self.answers)
    }

    fn passed(&self) -> impl Iterator<Item = &Candidate<'_>> {
        self.answered().filter(|(_, answer)| answer.is_ok()).map(|(node, _)| node)
    }

    fn failed(&self) -> impl Iterator<Item = (&str, ReasonText<'_>)> {
        self.answered().filter_map(|(node, answer)| Some((node.name.as_ref(), ReasonText(answer.as_ref().err()?))))
    }
}

impl Serialize for FilterResult<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (names, objects) = match self.args.form {
            Form::Names => (Some(Seq(|| self.passed().map(|node| &node.name))), None),
            Form::Objects => (None, Some(Items { items: Seq(|| self.passed().filter_map(|node| node.object)) })),
        };
        let mut result = serializer.serialize_struct("ExtenderFilterResult", 5)?;
        result.serialize_field("Nodes", &objects)?;
        result.serialize_field("NodeNames", &names)?;
        result.serialize_field("FailedNodes", &Map(|| self.failed()))?;
        // kube-scheduler prefers FailedAndUnresolvableNodes to FailedNodes, and does not try preemption on its nodes.
        // All nodes of a request passed kube-scheduler's own filters without an eviction. So preemption would find no
        // victim on them, whatever the answer, and would report that as an error of kube-scheduler.
        result.serialize_field("FailedAndUnresolvableNodes", &Map(|| self.failed()))?;
        result.serialize_field("Error", "")?;
        result.end()
    }
}

/// The items of a `v1.NodeList`.
#[derive(Serialize)]
struct Items<T> {
    items: T,
}

/// A list that is written while it is generated.
struct Seq<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for Seq<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// A map that is written while it is generated.
struct Map<F>(F);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>, F: Fn() -> I> Serialize for Map<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((self.0)())
    }
}

/// The reason of a rejection, written as a string.
struct ReasonText<'r>(&'r Rejected);

impl Serialize for ReasonText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.why.countable())
    }
}

#[cfg(test)]
mod tests;
