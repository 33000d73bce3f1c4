//! The installed DPDK for Rust: raw declarations and nothing safe. `pollux_dataplane::port::dpdk` is the safe face.
//!
//! - **Declarations** come from DPDK's own headers when the crate is built (bindgen), found by pkg-config: Debian 12's
//!   22.11 and later long-term releases. Their names and meanings are DPDK's; its API reference is the documentation.
//! - **`shim_*`** and **`SHIM_*`** are what C has as static inline functions and macros (`shim/shim.h`).
//! - **[`mbuf`]** reads and writes the fields of a `struct rte_mbuf`, by the offsets that the C compiler computed. The
//!   structure itself is opaque: its unnamed unions differ from release to release.
//!
//! Linked are DPDK's shared libraries. Its drivers are plugins that the EAL loads from the directory it was built with.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, reason = "DPDK's names")]
#![allow(
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]

include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));

pub mod mbuf;
