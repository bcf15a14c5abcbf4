//! The real listener.
