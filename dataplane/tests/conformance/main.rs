//! One suite for every port: each backend with each property is a test of its own, named
//! `backend::property`. A backend comes with a description of what it can by nature; nothing is skipped for it, the
//! properties hold the description against the port. `docs/io.md` is printed from the descriptions:
//!
//! ```text
//! cargo test -p pollux-dataplane --test conformance -- --docs > docs/io.md
//! ```

mod backends;
mod bench;
mod docs;
mod frame;
mod nature;
mod node;
mod properties;
mod raw;
mod same;
#[path = "../ports/sandbox.rs"]
#[allow(dead_code, reason = "the tests of single ports use more of it")]
mod sandbox;

use libtest_mimic::{Arguments, Trial};

use backends::{BACKENDS, Backend, MEMORY, NATURES};
use bench::{Lease, PORT};
use nature::Needs;
use properties::Property;
use sandbox::Rights;

fn main() {
    if std::env::args().any(|argument| argument == "--docs") {
        print!("{}", docs::page(NATURES));
        return;
    }
    let mut arguments = Arguments::from_args();
    // One after the other: a processor's queue of frames between interfaces (net.core.netdev_max_backlog) is one for all
    // namespaces, so that one test's flood would cost another its frames.
    arguments.test_threads.get_or_insert(1);
    // Before any thread is started: only a process of one thread may enter a user namespace.
    let rights = sandbox::enter();
    let mut trials = Vec::new();
    for backend in BACKENDS {
        let allowed = is_allowed(backend, rights);
        if !allowed {
            println!("not root: {} is left out ({:?})", backend.nature.name, backend.nature.needs);
        }
        trials.push(same(backend).with_ignored_flag(!allowed));
        trials.extend(
            properties::of(backend.nature)
                .map(|property| trial(backend, property).with_ignored_flag(!allowed)),
        );
    }
    trials.push(Trial::test("the_page_is_what_was_found", || {
        for Backend { nature, .. } in BACKENDS {
            assert!(NATURES.iter().any(|listed| listed.name == nature.name), "{} is not listed", nature.name);
        }
        let page = std::fs::read_to_string(docs::PATH)?;
        assert!(page == docs::page(NATURES), "docs/io.md is stale: print it anew with --docs");
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Whether this user may open the backend. Root always may: if it cannot, the tests say why.
fn is_allowed(backend: &Backend, rights: Rights) -> bool {
    match backend.nature.needs {
        _ if rights == Rights::Root => true,
        Needs::Nothing | Needs::Namespace => true,
        Needs::Root => false,
        Needs::Tun => std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok(),
    }
}

fn same(backend: &'static Backend) -> Trial {
    Trial::test(format!("{}::pt_03_the_same_frames_give_the_same_results", backend.nature.name), || {
        same::same_frames_give_the_same_results(backend, MEMORY);
        Ok(())
    })
}

fn trial(backend: &'static Backend, property: &'static Property) -> Trial {
    Trial::test(format!("{}::{}", backend.nature.name, property.name), || {
        let lease = Lease::new();
        let mut bench = (backend.open)(lease.pool(), PORT);
        (property.holds)(&mut bench);
        bench.close();
        Ok(())
    })
}
