//! Reads the kubelet's device checkpoint. Owns the file access; [`crate::k8s::checkpoint`] owns the format.

use std::io;

use tokio::io::AsyncReadExt;

use super::KubeletDirectory;
use crate::k8s::checkpoint::{Checkpoint, CheckpointError};

/// The largest checkpoint that is read, in bytes. An entry takes less than 1 KiB.
pub const MAX_CHECKPOINT: u64 = 16 << 20;

/// Why the checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Path of the file.
        path: String,
        /// Error of the operating system.
        error: io::Error,
    },
    /// The file is larger than [`MAX_CHECKPOINT`].
    #[error("{path}: more than {MAX_CHECKPOINT} bytes")]
    TooLarge {
        /// Path of the file.
        path: String,
    },
    /// The file is no checkpoint of a known format.
    #[error("{path}: {error}")]
    Format {
        /// Path of the file.
        path: String,
        /// What is wrong in it.
        error: CheckpointError,
    },
}

/// Reads the checkpoint. `None` if there is no file: the kubelet writes it at the first allocation.
///
/// # Errors
/// The file exists and cannot be read, is too large, or is no checkpoint.
pub async fn read(kubelet: &KubeletDirectory) -> Result<Option<Checkpoint>, ReadError> {
    let file = kubelet.checkpoint();
    let path = file.display().to_string();
    let mut text = Vec::new();
    let read = async {
        let file = tokio::fs::File::open(&file).await?;
        file.take(MAX_CHECKPOINT + 1).read_to_end(&mut text).await
    };
    match read.await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ReadError::File { path, error }),
        Ok(length) if length as u64 > MAX_CHECKPOINT => return Err(ReadError::TooLarge { path }),
        Ok(_) => {}
    }
    Checkpoint::parse(&text).map(Some).map_err(|error| ReadError::Format { path, error })
}
