//! Servers of GGUF models, llama.cpp and Ollama: they size their memory by the model and the length of its context.
//!
//! Without a length, Ollama chooses one by the memory of the whole GPU, and llama.cpp fits one into what is free of it.
//! Both do so even where the container may take a tenth of it. What they get is the length that Ollama chooses on a GPU
//! as large as the declared amount. Any length of the user's is kept, because only the user knows the model.
//!
//! `LLAMA_ARG_FIT_TARGET` and `OLLAMA_GPU_OVERHEAD` are never injected: both are memory to leave free *now*, and on a
//! shared GPU the neighbours' memory is not free, so the model would end on the CPU.

use crate::capacity::vram::Vram;

/// The length of the context, in tokens, that goes with an amount of memory.
pub(super) fn length(declared: Vram) -> &'static str {
    const GIB: u64 = 1024;
    match declared.mib() {
        mib if mib < 24 * GIB => "4096",
        mib if mib < 48 * GIB => "32768",
        _ => "262144",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_what_ollama_chooses_on_a_gpu_of_that_size() {
        for (mib, tokens) in [(1, "4096"), (24_575, "4096"), (24_576, "32768"), (49_151, "32768"), (49_152, "262144")] {
            assert_eq!(length(Vram::from_mib(mib)), tokens, "{mib}");
        }
    }
}
