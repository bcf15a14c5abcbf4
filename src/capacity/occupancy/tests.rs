//! The arithmetic of GPUs against oracles that play every way in which replicas may be handed out.
