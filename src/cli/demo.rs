//! placeholder
use super::Failure;
/// Arguments of `demo`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}
pub async fn run(_: Args) -> Result<(), Failure> {
    Ok(())
}
