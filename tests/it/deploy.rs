//! The manifests of `deploy/` on a real API server, each for what it is there for. What vramguard does with them is
//! `cluster`'s.

mod admission;
mod bindings;
mod clients;
mod flow;
mod ledgers;
mod served;

use crate::support::{ControlPlane, Finished};

/// kubectl as somebody else, with a manifest or a raw body as its input.
async fn kubectl_as(plane: &ControlPlane, kubeconfig: &str, arguments: &str, input: &str) -> Finished {
    let arguments: Vec<&str> = ["--kubeconfig", kubeconfig].into_iter().chain(arguments.split(' ')).collect();
    plane.kubectl_with_input(&arguments, input).await
}

/// kubectl as the administrator; words are separated by one space.
async fn kubectl(plane: &ControlPlane, arguments: &str, input: &str) -> Finished {
    plane.kubectl_with_input(&arguments.split(' ').collect::<Vec<_>>(), input).await
}
