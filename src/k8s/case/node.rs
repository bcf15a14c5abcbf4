//! Nodes in shorthand: number of GPUs, their memory and their replicas. Owns the defaults and the Node object that
//! results.

use std::fmt;
use std::num::NonZeroU32;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::{Map, Value, json};

use crate::capacity::vram::Vram;
use crate::k8s::document::GpuResource;
use crate::k8s::node::MAX_GPU;
use crate::k8s::quantity::{self, Bytes};
use crate::keys;

/// A node in shorthand, with GPUs of one kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    name: String,
    /// Number of physical GPUs.
    #[serde(default = "one")]
    gpus: NonZeroU32,
    memory: Memory,
    /// Device plugin replicas of each GPU: how many pods share it.
    #[serde(default = "one")]
    replicas: NonZeroU32,
    sharing: Option<Sharing>,
    product: Option<String>,
    resource: Option<GpuResource>,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// How the GPUs are shared, with the values of the label `nvidia.com/gpu.sharing-strategy`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum Sharing {
    #[serde(rename = "time-slicing")]
    TimeSlicing,
    #[serde(rename = "mps")]
    Mps,
    #[serde(rename = "none")]
    None,
}

impl Sharing {
    fn label(self) -> &'static str {
        match self {
            Sharing::TimeSlicing => keys::SHARING_TIME_SLICING,
            Sharing::Mps => keys::SHARING_MPS,
            Sharing::None => keys::SHARING_NONE,
        }
    }
}

impl Node {
    /// The Node object, with the labels of GPU Feature Discovery and the capacity of the device plugin.
    ///
    /// # Errors
    /// A field is wrong or two contradict each other; the error is the name of the field and the problem.
    pub(super) fn object(&self) -> Result<Value, (&'static str, String)> {
        if self.name.is_empty() {
            return Err(("name", "is empty; write the name of the node".to_owned()));
        }
        let shared = self.replicas.get() > 1;
        let sharing = self.sharing.unwrap_or(if shared { Sharing::TimeSlicing } else { Sharing::None });
        if shared && sharing == Sharing::None {
            return Err(("sharing", format!("none contradicts replicas: {}; leave one of them out", self.replicas)));
        }
        let mut labels = Map::new();
        let mut label = |key: &str, value: String| labels.insert(key.to_owned(), Value::String(value));
        label(keys::GFD_MEMORY, self.memory.0.mib().to_string());
        label(keys::GFD_COUNT, self.gpus.to_string());
        label(keys::GFD_REPLICAS, self.replicas.to_string());
        label(keys::GFD_SHARING, sharing.label().to_owned());
        if let Some(product) = &self.product {
            label(keys::GFD_PRODUCT, product.clone());
        }
        let resource = self.resource.as_ref().map_or(keys::GPU_RESOURCE, |resource| &resource.0.0);
        let capacity = u64::from(self.gpus.get()) * u64::from(self.replicas.get());
        Ok(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.name, "labels": labels },
            "status": { "capacity": { resource: capacity.to_string() } },
        }))
    }
}

/// Total memory of one GPU, in whole MiB; not zero and at most [`MAX_GPU`].
struct Memory(Vram);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Memory, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Memory;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the memory of one GPU: a quantity such as 24Gi, or MiB as a number such as 24576")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Memory, E> {
                match quantity::bytes(text) {
                    Some(Bytes::Exactly(total)) => sized(total),
                    Some(Bytes::RoundedUp(_)) | None => Err(E::custom(format_args!(
                        "{text:?} is not a whole number of MiB; write a quantity such as 24Gi, or MiB as a number such as 24576"
                    ))),
                }
            }
            fn visit_u64<E: Error>(self, mib: u64) -> Result<Memory, E> {
                // A number that does not fit is larger than any GPU.
                sized(Vram::checked_from_mib(mib).unwrap_or(Vram::MAX))
            }
            fn visit_i64<E: Error>(self, mib: i64) -> Result<Memory, E> {
                let mib = u64::try_from(mib);
                mib.map_err(|_| E::custom("is negative; write the memory of one GPU"))
                    .and_then(|mib| self.visit_u64(mib))
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

fn sized<E: Error>(total: Vram) -> Result<Memory, E> {
    if total.is_zero() {
        return Err(E::custom("is zero; write the memory of one GPU"));
    }
    if total > MAX_GPU {
        return Err(E::custom(format_args!("is more than {MAX_GPU}; no GPU is that large")));
    }
    Ok(Memory(total))
}
