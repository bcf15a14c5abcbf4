//! Connects to the cluster of a kubeconfig. Owns which one, and its name in the report.

use std::path::Path;

use anyhow::{Context, anyhow};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::Failure;
use crate::state::objects::{Objects, ObjectsError};

/// The cluster that the arguments choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen<'a> {
    /// `--kubeconfig`; `None` for the one of KUBECONFIG or of the home directory.
    pub kubeconfig: Option<&'a Path>,
    /// `--context`; `None` for the current one.
    pub context: Option<&'a str>,
}

/// Unreadable input, or a failure on the way.
pub(super) fn failure(error: ObjectsError) -> Failure {
    match error {
        ObjectsError::Forbidden { .. } | ObjectsError::Object(_) => Failure::Input(error.into()),
        ObjectsError::Request { .. } => Failure::Run(error.into()),
    }
}

/// Connects by the kubeconfig, or from within a cluster if there is none. Returns the name of the context too.
///
/// # Errors
/// There is no readable kubeconfig, or it has no such context.
pub(super) async fn connect(chosen: Chosen<'_>, namespace: Option<&str>) -> Result<(Objects, String), Failure> {
    let Chosen { kubeconfig, context } = chosen;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let (config, name) = match kubeconfig.map_or_else(Kubeconfig::read, Kubeconfig::read_from) {
        Ok(kubeconfig) => {
            let name = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone()).unwrap_or_default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
            (config.with_context(|| format!("context {name:?} of the kubeconfig")).map_err(Failure::Input)?, name)
        }
        Err(error) if kubeconfig.is_some() => {
            let file = kubeconfig.unwrap_or(Path::new("")).display();
            let what = format!("--kubeconfig {file}: cannot be read as a kubeconfig");
            return Err(Failure::Input(anyhow!(error).context(what)));
        }
        Err(error) if context.is_some() => {
            let what = "the kubeconfig cannot be read, and --context names one of its contexts";
            return Err(Failure::Input(anyhow!(error).context(what)));
        }
        Err(error) => match kube::Config::incluster() {
            Ok(config) => (config, "the cluster that vramguard runs in".to_owned()),
            Err(_) => {
                let what = "no cluster to read: set KUBECONFIG, give --kubeconfig FILE, or give files by --snapshot FILE, as \
                            `kubectl get nodes,pods -A -o json` prints them";
                return Err(Failure::Input(anyhow!(error).context(what)));
            }
        },
    };
    let client = Client::try_from(config).context("connecting to the API server").map_err(Failure::Input)?;
    Ok((Objects { client, namespace: namespace.map(str::to_owned) }, name))
}
