//! What one replica knows: the cluster as its watches report it, the policies in force, and the ledgers it read or
//! wrote.
//!
//! | module | owns |
//! |---|---|
//! | [`watch`] | LIST and WATCH of nodes, pods and ledgers, with one object in memory at a time |
//! | [`index`] | the state that reviews are answered from, behind one lock |
//! | [`unbound`] | guarded pods without a node, cached so that the guard need not read them to review their bindings |
//! | [`policies`] | policy files: loading, generations, the last valid set |
//! | [`objects`] | one reading of everything that an audit looks at |
//! | [`ledgers`] | reading and compare-and-swap writing of `GpuLedger` objects |

pub mod index;
pub mod ledgers;
pub mod objects;
pub mod policies;
pub mod unbound;
pub mod watch;
