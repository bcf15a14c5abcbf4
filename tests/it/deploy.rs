//! The manifests of `deploy/` on a real API server, one by one. The module `cluster` tests vramguard under them.

mod admission;
mod bindings;
mod clients;
mod combinations;
mod flow;
mod ledgers;
mod policies;
mod served;

use crate::support::{ControlPlane, Finished};

/// Runs kubectl with another kubeconfig; see [`kubectl`].
async fn kubectl_as(plane: &ControlPlane, kubeconfig: &str, arguments: &str, input: &str) -> Finished {
    let arguments: Vec<&str> = ["--kubeconfig", kubeconfig].into_iter().chain(arguments.split(' ')).collect();
    plane.kubectl_with_input(&arguments, input).await
}

/// Runs kubectl as the administrator, with arguments separated by one space and `input` on stdin.
async fn kubectl(plane: &ControlPlane, arguments: &str, input: &str) -> Finished {
    plane.kubectl_with_input(&arguments.split(' ').collect::<Vec<_>>(), input).await
}
