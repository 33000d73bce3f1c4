//! Finds the installed DPDK through pkg-config, compiles the shim and makes the declarations.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest release that the crate is written for.
const OLDEST: &str = "22.11";

/// What is linked, and no more: pkg-config would name fifty libraries. The last one is a driver, for rings that the
/// process makes itself; all other drivers are plugins that DPDK loads when it starts.
const LIBRARIES: [&str; 7] =
    ["rte_eal", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_kvargs", "rte_net_ring"];

const FUNCTIONS: &str = "shim_.*|rte_eal_(init|iova_mode|has_hugepages)|rte_version|rte_dev_(probe|remove|dma_map|dma_unmap)\
    |rte_extmem_(register|unregister)|rte_mem_virt2iova\
    |rte_mempool_(register_ops|free|avail_count)|rte_mbuf_set_user_mempool_ops\
    |rte_pktmbuf_pool_create(_extbuf)?|rte_ring_(create|free)|rte_eth_from_rings\
    |rte_eth_dev_(info_get|configure|start|stop|close|get_port_by_name|set_mtu|get_mtu|socket_id\
    |adjust_nb_rx_tx_desc|set_link_up|set_link_down)\
    |rte_eth_(rx|tx)_queue_setup|rte_eth_promiscuous_enable|rte_eth_macaddr_get\
    |rte_eth_stats_get|rte_eth_xstats_get|rte_eth_xstats_get_names";

const CONSTANTS: &str = "SHIM_.*|RING_F_S[PC]_(ENQ|DEQ)|RTE_ETH_MQ_RX_RSS|SOCKET_ID_ANY|RTE_ETH_NAME_MAX_LEN";

fn main() {
    println!("cargo::rerun-if-changed=shim");
    let Err(error) = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .probe("libdpdk")
        .map(|library| build(&library))
    else {
        return;
    };
    eprintln!(
        "DPDK {OLDEST} or later was not found. On Debian and Ubuntu: apt install libdpdk-dev libclang-dev pkg-config\n\
         Pollux is built without it when the feature `dpdk` is off.\n\n{error}"
    );
    std::process::exit(1);
}

fn build(library: &pkg_config::Library) {
    for path in &library.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for name in LIBRARIES {
        println!("cargo::rustc-link-lib={name}");
    }
    println!("cargo::metadata=version={}", library.version);
    let flags = flags();
    // System headers to the compilers: their warnings are not ours.
    let mut shim = cc::Build::new();
    for flag in &flags {
        shim.flag(flag);
    }
    shim.file("shim/shim.c").warnings(true).compile("pollux_dpdk_shim");

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    bindgen::builder()
        .header("shim/shim.h")
        .clang_args(&flags)
        .allowlist_function(FUNCTIONS)
        .allowlist_var(CONSTANTS)
        // Read and written through their offsets only, whatever a release's layout is.
        .opaque_type("rte_mbuf|rte_mempool|rte_ring|rte_device|rte_mempool_memhdr")
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .prepend_enum_name(false)
        .layout_tests(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .generate()
        .expect("DPDK's headers are parsed")
        .write_to_file(Path::new(&out).join("dpdk.rs"))
        .expect("cargo's output directory is writable");
}

/// What the headers ask of a compiler: where they are, the configuration to include first, the processor that the
/// library was built for.
fn flags() -> Vec<String> {
    let command = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output =
        Command::new(command).args(["--cflags", "libdpdk"]).output().expect("pkg-config ran a moment ago");
    let flags = String::from_utf8(output.stdout).expect("pkg-config prints text");
    flags
        .split_whitespace()
        .map(|flag| match flag.strip_prefix("-I") {
            Some(path) => format!("-isystem{path}"),
            None => flag.to_owned(),
        })
        .collect()
}
